"""One annotation of PASCAL VOC: what its tags say, in whatever case or namespace they are written."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from overnight.data.content import CleaningCounts
from overnight.data.readers._common import present, tidy
from overnight.errors import DataError, file_error

KNOWN = {"folder", "filename", "path", "source", "owner", "size", "segmented", "object", "objects"}
COORDINATES = {"bndbox", "robndbox", "polygon", "points", "box", "bbox", "boundingbox", "xmin", "xmax"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h", "angle")
ANGLES = ("angle", "rotation", "theta")
NAMELESS = "box without a class name dropped"


class Damaged(DataError):
    """An annotation that is empty or cut short, in a set whose others may be whole."""


@dataclass(frozen=True)
class Annotation:
    """names: of the boxes' classes; corners: of each box, x1 y1 x2 y2 as written; size: width, height.

    A rotated box has its centre, width, height and angle there, until `settle_angles` has seen all of them.

    picture: the name of its image, as far as it is stated
    """

    xml: Path
    names: list[str]
    corners: list[list[float]]
    size: tuple[float, float] | None
    picture: str = ""

    @property
    def is_relative(self) -> bool | None:
        """Whether corners are shares of the sides, 0..1; None where whole numbers 0 and 1 leave it open."""
        values = [value for box in self.corners for value in box]
        if not values:
            return None
        inside = max(values) <= 1.01 and min(values) >= -0.01
        if inside and all(value == int(value) for value in values):
            return None
        return inside


def parse(xml: Path, drop_difficult: bool, cleaned: CleaningCounts) -> Annotation:
    """Raises Damaged, and DataError for an annotation in which the boxes are not understood."""
    root = _root(xml)
    objects = list(root.iter("object"))
    _check_understood(root, objects, xml)
    names, corners = list[str](), list[list[float]]()
    for element in objects:
        if (element.findtext("deleted") or "0").strip().lower() in ("1", "true", "yes"):  # of LabelMe
            cleaned.at("object that is marked as deleted left out", xml.name)
            continue
        if drop_difficult and (element.findtext("difficult") or "0").strip().lower() not in ("0", "false"):
            cleaned["difficult box dropped"] += 1
            continue
        name = tidy(element.findtext("name"), "class name", cleaned)
        for box in _boxes(element, xml, cleaned):
            if not name:
                cleaned.at(NAMELESS, str(xml.name))
                continue
            names.append(name)
            corners.append(box)
    picture = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return Annotation(xml, names, corners, _size(root), picture)


def _root(xml: Path) -> ET.Element:
    """With tags in lower case, without namespaces."""
    try:
        # expat itself stops entity bombs; nothing external is read
        root = ET.fromstring(present(xml.parent, xml.name).read_bytes())  # noqa: S314
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: unknown encodings
        raise Damaged(
            file_error(xml, f"expected an xml annotation: {error}; mend it, or get it anew").problems
        ) from None
    except DataError as error:  # empty
        raise Damaged(error.problems) from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].strip().lower()
    if root.tag != "annotation":
        raise file_error(
            xml, f"its root is <{root.tag}>, expected <annotation> of PASCAL VOC; it is of another format"
        )
    if not KNOWN & {child.tag for child in root}:
        raise Damaged(file_error(xml, "the annotation says nothing; mend it, or get it anew").problems)
    return root


def _check_understood(root: ET.Element, objects: list[ET.Element], xml: Path) -> None:
    """What is not understood is never taken for an image without boxes."""
    inside = {id(part) for element in objects for part in element.iter()}
    odd = [e.tag for e in root.iter() if e.tag in COORDINATES and id(e) not in inside]
    odd += [child.tag for child in root if child.tag not in KNOWN and _is_object(child)]
    if not objects:
        odd += [child.tag for child in root if child.tag not in KNOWN and len(child)]
        odd += [child.tag for child in root.findall("objects/*")]
    if odd:
        raise file_error(
            xml,
            f"<{odd[0]}> is not understood; expected <object> with <name> and <bndbox> (<xmin>, <ymin>, "
            "<xmax>, <ymax>); rename the tags, or convert the set to PASCAL VOC",
        )


def _is_object(element: ET.Element) -> bool:
    """Whether it has a name, and something of several parts beside it, such as a box."""
    return element.find("name") is not None and any(len(part) > 1 for part in element)


def _size(root: ET.Element) -> tuple[float, float] | None:
    try:
        width, height = (float(root.findtext(f"size/{side}") or "") for side in ("width", "height"))
    except ValueError:
        return None
    stated = math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0
    return (width, height) if stated else None


def _boxes(element: ET.Element, xml: Path, cleaned: CleaningCounts) -> list[list[float]]:
    """Of one object; of a rotated box or a polygon without <bndbox> the upright box around it."""
    try:
        straight = [box for box in element.findall("bndbox") if box.find("xmin") is not None]
        turned = [tag for box in straight for tag in ANGLES if float(box.findtext(tag) or 0)]
        if turned:
            raise file_error(
                xml,
                f"a box has corners and an <{turned[0]}>, so which way it was turned is unknown; write it as "
                "<robndbox> or <polygon>, or remove the angle",
            )
        if straight:
            return [[_number(box.findtext(side)) for side in CORNERS] for box in straight]
        rotated = element.find("robndbox")
        if rotated is not None:
            return [[_number(rotated.findtext(name)) for name in ROTATED]]
        outline = next((e for e in map(element.find, ("polygon", "points", "bndbox")) if e is not None), None)
        if outline is not None:
            cleaned["polygon replaced by the upright box around it"] += 1
            return [_around_polygon(outline)]
    except ValueError:
        pass
    raise file_error(
        xml, f"a box of {element.findtext('name')!r} lacks a corner; expected four numbers"
    ) from None


def _number(text: str | None) -> float:
    """Raises ValueError for what is missing, no number, nan or infinite."""
    value = float(text or "")
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def settle_angles(annotations: Iterable[Annotation], unit: str | None, cleaned: CleaningCounts) -> None:
    """Replace each rotated box by the upright box around it, all angles in one unit.

    unit: radians, degrees, or None: degrees where one is beyond a turn in radians, and radians where one is
    written as a computer writes them. Raises DataError where neither tells.
    """
    turned = [(a, i) for a in annotations for i, box in enumerate(a.corners) if len(box) > len(CORNERS)]
    angles = [abs(a.corners[i][-1]) for a, i in turned]
    if unit is None and max(angles, default=0) > 2 * math.pi:
        unit = "degrees"
    elif unit is None and any(angle != round(angle, 3) for angle in angles):
        unit = "radians"
    if unit is None and any(angles):
        first = next(a for a, i in turned if a.corners[i][-1])
        raise file_error(
            first.xml,
            f"its box is rotated by {max(angles):g} at most, which may be radians or degrees; write "
            "`options: {angles: radians}` or `degrees` in the entry",
        )
    for annotation, i in turned:
        annotation.corners[i] = _around_rotated(annotation.corners[i], unit == "degrees")
        said = f"rotated box, its angle in {unit}," if unit else "rotated box"
        cleaned[f"{said} replaced by the upright box around it"] += 1


def _around_rotated(box: list[float], degrees: bool) -> list[float]:
    """Corners of the upright box around one of this centre, width, height and angle."""
    x, y, width, height, angle = box
    turn = math.radians(angle) if degrees else angle
    cosine, sine = abs(math.cos(turn)), abs(math.sin(turn))
    half_x, half_y = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return [x - half_x, y - half_y, x + half_x, y + half_y]


def _around_polygon(outline: ET.Element) -> list[float]:
    """Points as <x>, <y> or <x1>, <y1>, <x2> ..., at any depth."""
    leaves = [(e.tag, _number(e.text)) for e in outline.iter() if re.fullmatch(r"[xy]\d*", e.tag)]
    across, down = ([value for tag, value in leaves if tag[0] == axis] for axis in "xy")
    if len(across) != len(down) or len(across) < 2:
        raise ValueError
    return [min(across), min(down), max(across), max(down)]
