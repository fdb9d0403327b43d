"""Pretrained weights by the name of their entry, weights/<name>.yaml: what they are, and where they lie.

Safetensors and GGUF alone are read: other formats are pickles, which can run code when they are opened.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from overnight.config import read, validate
from overnight.data import digests
from overnight.data.fetch import located
from overnight.data.file_set import FileSet, Package
from overnight.errors import ConfigError, DataError, did_you_mean, file_error
from overnight.files import read_json
from overnight.paths import shown, weights

Form = Literal["transformers", "gguf", "diffusers", "adapter"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx")
INDEX = {"transformers": "config.json", "diffusers": "model_index.json", "adapter": "adapter_config.json"}


class Pretrained(FileSet):
    """A config gives the name of weights; the experiment holds their entry.

    licence: of the weights, which may differ from that of the package that brings them.
    """

    KIND: ClassVar[str] = "weights"
    COMMAND: ClassVar[str] = "weights"

    form: Form
    package: str = ""  # the module of an installed package that holds the files, in `folder` below it
    base: str = ""  # of an adapter: the name of the entry that it was trained on
    revision: str = ""  # the commit of the hub that the addresses are of
    terms: str = ""  # the page of a licence that must be accepted before the files can be had
    template: str = ""  # Jinja text that makes a prompt of messages; the model's own when left out
    config: dict[str, Any] = {}  # of its config.json: so its memory is known before it is here

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return load_entry(given).model_dump()
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None

    @field_validator("files")
    @classmethod
    def _no_pickles(cls, files: list[Any]) -> list[Any]:
        bad = [file.path for file in files if file.path.endswith(PICKLES)]
        if bad:
            raise ValueError(
                f"{', '.join(bad)}: is a format that can run code when it is opened; name the .safetensors "
                "or .gguf instead"
            )
        return files

    @model_validator(mode="after")
    def _base_of_an_adapter(self) -> "Pretrained":
        if (self.form == "adapter") != bool(self.base):
            raise ValueError("base: is the entry that an adapter was trained on; adapters alone have one")
        return self

    @classmethod
    def home(cls) -> Path:
        return weights()

    @property
    def installed(self) -> Package | None:
        return Package(self.package, self.folder) if self.package else None

    def locate(self, replace_damaged: bool = False) -> Path:
        """Where the weights lie: a .gguf file, or a folder of the other forms; downloaded if need be.

        Raises DataError: what is missing, damaged, or not of its form.
        """
        folder = located(self, replace_damaged)
        return _gguf(self, folder) if self.form == "gguf" else _checked(self, folder)

    def identity(self) -> dict[str, Any]:
        own = {"form": self.form, "template": self.template, **self.file_digests()}
        return own | {"base": load_entry(self.base).identity()} if self.base else own

    def shape(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"name", "form", "base"})


def _gguf(entry: Pretrained, folder: Path) -> Path:
    """The only .gguf of the folder, or of the entry's files. Raises DataError."""
    named = [folder / file.path for file in entry.files if file.path.endswith(".gguf")]
    found = named or sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise file_error(folder, f"{entry.called} needs one .gguf file, there is {names}; name it in `files`")
    return found[0]


def _checked(entry: Pretrained, folder: Path) -> Path:
    """Raises DataError for a folder that is not of the entry's form, or would run code of its own."""
    index = folder / INDEX[entry.form]
    values = read_json(index)
    if not values:
        raise file_error(
            folder, f"{entry.called} is of the form {entry.form}, but has no readable {index.name}"
        )
    if "auto_map" in values:
        raise file_error(
            index,
            f"{entry.called} needs code of its own (`auto_map`), which is not run; choose a model "
            "that transformers knows",
        )
    if not any(folder.rglob("*.safetensors")):
        pickled = sorted(path.name for path in folder.rglob("*") if path.name.endswith(PICKLES))
        have = f"only {', '.join(pickled[:3])}, which can run code when opened" if pickled else "no weights"
        raise file_error(folder, f"{entry.called} has {have}; convert it to .safetensors")
    return folder


def names() -> list[str]:
    return sorted(path.stem for path in weights().glob("*.yaml"))


def load_entry(name: str) -> Pretrained:
    """Raises ConfigError with every mistake."""
    if name not in names():
        raise ConfigError(
            f"unknown weights {name!r}{did_you_mean(name, names())} (`overnight weights ls` lists them; new "
            f"ones are weights/{name}.yaml, which `overnight weights new` writes)"
        )
    values, source = read(weights() / f"{name}.yaml")
    return validate(Pretrained, {"name": name, **values}, source)


def listing() -> list[dict[str, Any]]:
    """A row for each entry; hashes nothing."""
    return [_row(name) for name in names()]


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "form": "", "where": "not here", "MB": None, "licence": ""}
    try:
        entry = load_entry(name)
        folder = next(iter(entry.found()), None)
    except (ConfigError, DataError) as error:
        return row | {"where": str(error)}
    row |= {"form": entry.form, "licence": entry.licence or "not stated"}
    if folder is not None:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        row["where"] = entry.installed.name if entry.installed else shown(folder)
        row["MB"] = round(sum(sizes) / 1e6, 1)
    elif entry.files:
        row["MB"] = round(sum(file.bytes or 0 for file in entry.files) / 1e6, 1)
    return row


def fetch(name: str) -> str:
    """Download what is missing or damaged; where it lies. Raises DataError."""
    return shown(load_entry(name).locate(replace_damaged=True))


def verify(name: str) -> list[str]:
    """What is wrong: every file is hashed anew, and the form is checked."""
    entry = load_entry(name)
    folder = next(iter(entry.found()), None)
    if folder is None:
        return [f"not here; `overnight weights fetch {name}`"]
    for file in entry.files:
        digests.forget(folder / file.path)
    try:
        entry.locate()
    except DataError as error:
        return error.problems
    return []
