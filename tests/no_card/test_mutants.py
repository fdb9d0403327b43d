"""Every defect of bench/mutants.json can still be put back: a change of its line changes it there, too."""

from bench.mutants import MUTANTS, ROOT


def test_the_line_of_every_defect_is_there_once():
    found = {mutant.number: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS}
    assert [number for number, times in found.items() if times != 1] == []
    assert {str(number) for number in range(1, 19)} <= found.keys()
    names = {path.stem for path in (ROOT / "tests" / "no_card").glob("test_*.py")}
    assert {f"test_{mutant.seen_by}" for mutant in MUTANTS} <= names
