"""The values of a model of tables."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from overnight.config import Params, runtime_option

MOST_CLASSES = 50
Task = Literal["classify", "regress"]
Columns = list[str] | Literal["all"]


class FitParams(Params):
    """What to predict, and from which columns.

    Choosing ones known before the answer is, is up to these values.
    """

    MEANINGLESS: ClassVar = {
        "key": "rows with equal values of `groups` share a part, which follows a hash of these values"
    }

    target: str = Field(description="an SQL expression over the columns; rows where it is null are left out")
    task: Task | None = Field(
        None,
        description="left out: classify up to 10 whole numbers and whatever is no number, regress from 51 on",
    )
    model: Literal["boosted", "linear"] = Field(
        "boosted", description="what is handed on; the other is fitted as well, to compare"
    )
    unit: str = Field("", description="of the number that is predicted")
    numeric: Columns = Field(
        [],
        description="columns of numbers, or all that are left; linear scales them to mean 0 and deviation 1, "
        "a missing value becomes the median and is flagged; trees take them as they are",
    )
    categorical: Columns = Field(
        [], description="columns of levels, or all texts and truth values that are left; missing is a level"
    )
    levels: int = Field(
        200,
        ge=2,
        description="the most frequent levels of a column that are kept, the rest are one; trees take a "
        "column of more as the mean target of its levels, learned from the training rows",
    )
    order: str | None = Field(None, description="the last rows by this column are the test part")
    groups: list[str] = Field(
        [], description="a column or several: rows with equal values share a part, by a hash of the values"
    )
    parts: str | None = Field(None, description="the column that says train, val or test")
    test: float = Field(0.2, gt=0, lt=1, description="share of the rows that is only for the scores")
    val: float = Field(0.1, ge=0, lt=1, description="share that says when to stop; 0: all rounds are made")
    log_target: bool = Field(False, description="fit log(1 + number); for targets from 0 on")
    class_weights: Literal["balanced"] | dict[str, float] | None = Field(
        None, description="of the loss by class; balanced: each class counts the same"
    )
    rounds: int = Field(300, ge=1, description="of boosting at most")
    patience: int = Field(20, ge=1, description="rounds without a better loss on val before it stops")
    lr: float = Field(0.1, gt=0, le=1, description="share of each tree that counts")
    leaves: int = Field(31, ge=2, description="of a tree at most")
    leaf_rows: int = Field(20, ge=1, description="rows of a leaf at least")
    strength: float = Field(1.0, gt=0, description="inverse of the L2 penalty of the linear model")
    iterations: int = Field(300, ge=1, description="of the linear model's solver at most")
    backend: Literal["auto", "sklearn", "cuml"] = runtime_option(
        "auto",
        "of the linear model; cuml fails where there is no card; auto takes it for large tables where it "
        "works",
    )
    cuml_from_rows: int = runtime_option(
        1_000_000, "auto stays with scikit-learn below, since importing cuML alone takes seconds"
    )

    @field_validator("groups", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        ways = [name for name in ("order", "groups", "parts") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} each say how the rows are cut; keep one of them")
        if self.test + self.val >= 1:
            raise ValueError(f"test {self.test} and val {self.val} leave no row to learn from")
        if self.task == "regress" and self.class_weights:
            raise ValueError("class_weights has no effect with task regress")
        if self.task == "classify" and (self.log_target or self.unit):
            raise ValueError(
                f"{'log_target' if self.log_target else 'unit'} has no effect with task classify"
            )
        return self

    def columns(self) -> list[str]:
        """Those named beside the target: features, and what cuts the rows."""
        named = [column for part in (self.numeric, self.categorical) if part != "all" for column in part]
        cuts = [self.order, *self.groups, self.parts]
        return list(dict.fromkeys([*named, *(column for column in cuts if column)]))
