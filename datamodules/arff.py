"""ARFF files: dense and sparse rows, numbers, words of a declared domain, and text, with the line of each row."""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from datamodules.csv_rows import is_number
from runs.errors import InputError, did_you_mean, first_few

MISSING = "?"  # the format's word for an unknown value
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ATTRIBUTE = re.compile(rf"@attribute\s+({_QUOTED}|[^\s{{]+)\s*(.*)", re.IGNORECASE)
_CELL = re.compile(rf"\s*({_QUOTED}|[^,'\"]*)\s*(,|$)")
_WORD = re.compile(rf"({_QUOTED}|[^\s'\"]+)(?:\s+|$)")
_NUMERIC = ("numeric", "real", "integer")


@dataclass(frozen=True)
class Attribute:
    """A column of an ARFF file.

    Attributes:
        name: without quotes.
        kind: ``nominal`` has a declared domain; ``string`` is free text.
        domain: words of a nominal column, in the file's order.
    """

    name: str
    kind: Literal["numeric", "nominal", "string"]
    domain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arff:
    """An ARFF file as it stands there.

    Attributes:
        path: the file.
        attributes: its m columns.
        values: (n, m) float64, or a sparse array of them where the rows are sparse. A nominal value is its
            place in the domain, so what a sparse row leaves out, the first word of the domain, is 0; text
            and unknown values are NaN.
        lines: line number of each row.
        text: words of the string columns, by name.
    """

    path: Path
    attributes: list[Attribute]
    values: NDArray[np.float64] | sparse.csr_array
    lines: list[int]
    text: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [attribute.name for attribute in self.attributes]

    def place(self, name: str, key: str) -> int:
        """Where a column stands; `key` is the config key that names it, for the message.

        Raises:
            InputError: the file has no such attribute.
        """
        if name not in self.names:
            raise InputError(f"{self.path} has no attribute '{name}' ({key}): {did_you_mean(name, self.names)}")
        return self.names.index(name)

    def column(self, place: int) -> NDArray[np.float64]:
        """A copy of one column of `values`, (n,)."""
        if sparse.issparse(self.values):
            return np.asarray(self.values[:, [place]].todense()).ravel()
        return self.values[:, place].copy()

    def words(self, place: int) -> list[str]:
        """A column in words: ``?`` where unknown, numbers as short as they can be."""
        attribute = self.attributes[place]
        if attribute.kind == "string":
            return self.text[attribute.name]
        values = self.column(place)
        if attribute.kind == "nominal":
            return [MISSING if np.isnan(value) else attribute.domain[int(value)] for value in values]
        return [MISSING if np.isnan(value) else f"{value:.17g}" for value in values]

    def features(
        self, places: Iterable[int], nominal: Literal["one_hot", "number", "value"]
    ) -> tuple[NDArray[np.float64] | sparse.csr_array, list[str]]:
        """Some columns as numbers (n, d), sparse where the rows are, and their d names.

        A domain of two words (or one) becomes one column, of the words' numbers if they are numbers and of 0 and 1
        otherwise. A longer one becomes a column ``name=word`` of 0 and 1 for each word (``one_hot``), or one
        column: of the word's place in the domain (``number``), or of the number that it is (``value``).

        Raises:
            InputError: a column is text, or has words that are no numbers where they should be ``value``.
        """
        places = list(places)
        text = [self.attributes[place].name for place in places if self.attributes[place].kind == "string"]
        if text:
            raise InputError(f"{self.path}: {first_few(text)} hold text, which is no feature: leave these columns out")
        columns: list[str] = []
        blocks: list[NDArray[np.float64] | sparse.csc_array] = []
        plain: list[int] = []  # columns whose codes are their numbers, taken all at once
        values = self.values.tocsc() if sparse.issparse(self.values) else self.values

        def take_plain() -> None:
            if plain:
                blocks.append(values[:, plain])
                plain.clear()

        for place in places:
            attribute = self.attributes[place]
            domain = attribute.domain
            numbers = list(range(len(domain)))
            if (len(domain) <= 2 or nominal == "value") and all(map(is_number, domain)):
                numbers = [float(word) for word in domain]
            elif len(domain) > 2 and nominal == "value":
                raise InputError(
                    f"{self.path}: {attribute.name} has words that are no numbers ({first_few(domain)}): set "
                    "data.reader.nominal=one_hot or data.reader.nominal=number"
                )
            if attribute.kind == "nominal" and len(domain) > 2 and nominal == "one_hot":
                take_plain()
                codes = self.column(place)
                hot = (codes[:, None] == np.arange(len(domain))).astype(np.float64)
                hot[np.isnan(codes)] = np.nan
                blocks.append(hot)
                columns += [f"{attribute.name}={word}" for word in domain]
                continue
            if numbers == list(range(len(domain))):  # of a numeric column too: its domain is empty
                plain.append(place)
            else:
                take_plain()
                codes = self.column(place)
                known = ~np.isnan(codes)
                codes[known] = np.array(numbers)[codes[known].astype(np.int64)]
                blocks.append(codes[:, None])
            columns.append(attribute.name)
        take_plain()
        if sparse.issparse(self.values):
            return sparse.csr_array(sparse.hstack(blocks, format="csr")), columns
        return np.hstack(blocks), columns


def read_arff(path: Path, header_notes: bool = False, blanks: bool = False) -> Arff:
    """Reads a file in UTF-8.

    Args:
        path: the file.
        header_notes: whether lines before ``@data`` that are neither declarations nor comments are passed over
            with a warning; some old files have comments whose ``%`` was lost.
        blanks: whether the cells of dense rows are divided by blanks instead of commas.

    Raises:
        InputError: it is missing, not UTF-8, or breaks the format: the line and what it should be are named.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not written in UTF-8: save it in that encoding") from error
    attributes, start = _header(path, lines, header_notes)
    rows = [(number, line.strip()) for number, line in enumerate(lines[start:], start + 1)]
    rows = [(number, line) for number, line in rows if line and not line.startswith("%")]
    if not rows:
        raise InputError(f"{path} holds no row below @data")
    numbers = [number for number, _ in rows]
    is_sparse = rows[0][1].startswith("{")
    for number, line in rows:
        if line.startswith("{") != is_sparse:
            kinds = ("sparse", "dense") if is_sparse else ("dense", "sparse")
            raise InputError(
                f"{path}, line {number}: a {kinds[1]} row in a file that begins with {kinds[0]} rows: write all in one "
                "form"
            )
    values, text = (_sparse if is_sparse else _dense)(path, attributes, rows, blanks)
    return Arff(path, attributes, values, numbers, text)


def _header(path: Path, lines: list[str], notes: bool) -> tuple[list[Attribute], int]:
    """The declarations, and the number of lines up to and with ``@data``."""
    attributes: list[Attribute] = []
    skipped = []
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        where = f"{path}, line {number}"
        keyword = line.split(None, 1)[0].lower() if line else ""
        if not line or line.startswith("%") or keyword == "@relation":
            continue
        if keyword == "@data":
            if skipped:
                warnings.warn(
                    f"{path}: {len(skipped)} lines of the header are neither declarations nor comments and were passed "
                    f"over (lines {first_few(skipped)})",
                    stacklevel=3,
                )
            if not attributes:
                raise InputError(f"{where}: @data comes before any @attribute")
            return attributes, number
        if keyword == "@attribute":
            attributes.append(_attribute(where, line))
            if attributes[-1].name in [attribute.name for attribute in attributes[:-1]]:
                raise InputError(
                    f"{where}: there are two attributes '{attributes[-1].name}': give each a name of its own"
                )
        elif notes and not line.startswith("@"):
            skipped.append(number)
        else:
            shown = line if len(line) < 60 else f"{line[:57]}..."
            raise InputError(f"{where}: '{shown}' is no @relation, @attribute or @data, and no comment (%)")
    raise InputError(f"{path} has no line @data: it is no ARFF file, or it was cut off")


def _attribute(where: str, line: str) -> Attribute:
    match = _ATTRIBUTE.match(line)
    if match is None or not match[2].strip():
        raise InputError(f"{where}: an attribute needs a name and a type, found '{line[:60]}'")
    name, kind = _unquoted(match[1]), match[2].strip()
    if kind.startswith("{"):
        end = kind.rfind("}")
        if end < 0:
            raise InputError(f"{where}: the domain of '{name}' has no closing brace")
        domain = tuple(_cells(kind[1:end], where))
        doubled = sorted({word for word in domain if domain.count(word) > 1})
        if "" in domain:
            raise InputError(f"{where}: the domain of '{name}' has an empty word: write its words between commas")
        if doubled:
            raise InputError(f"{where}: the domain of '{name}' names {first_few(doubled)} more than once")
        return Attribute(name, "nominal", domain)
    kind = kind.split("%")[0].strip()
    if kind.lower() in _NUMERIC:
        return Attribute(name, "numeric")
    if kind.lower() == "string":
        return Attribute(name, "string")
    raise InputError(
        f"{where}: the type of '{name}' is '{kind}': numeric, real, integer, string and {{domains}} are read"
    )


def _unquoted(word: str) -> str:
    if len(word) > 1 and word[0] in "'\"" and word[-1] == word[0]:
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    return word


def _cells(line: str, where: str) -> list[str]:
    """Cells between commas, without quotes and surrounding blanks."""
    if "'" not in line and '"' not in line:
        return [cell.strip() for cell in line.split(",")]
    cells, start = [], 0
    while True:
        match = _CELL.match(line, start)
        if match is None:
            raise InputError(f"{where}: a quote is not closed in '{line[start : start + 40]}'")
        cells.append(_unquoted(match[1].strip()))
        start = match.end()
        if not match[2]:
            return cells


def _words(line: str, where: str) -> list[str]:
    """Words between blanks, without quotes."""
    if "'" not in line and '"' not in line:
        return line.split()
    words, start = [], 0
    while start < len(line):
        match = _WORD.match(line, start)
        if match is None:
            raise InputError(f"{where}: a quote is not closed in '{line[start : start + 40]}'")
        words.append(_unquoted(match[1]))
        start = match.end()
    return words


def _value(attribute: Attribute, codes: dict[str, int], word: str, where: str) -> float:
    """A cell as a number.

    Raises:
        InputError: it is no number, infinite, or not of the domain.
    """
    if word == MISSING or attribute.kind == "string":
        return np.nan
    if attribute.kind == "nominal":
        if word not in codes:
            raise InputError(
                f"{where}: {attribute.name} is '{word}', which its domain does not have ({first_few(attribute.domain)})"
            )
        return codes[word]
    try:
        value = float(word)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(
            f"{where}: {attribute.name} is '{word}' instead of a finite number: mend it, or write {MISSING} if it is "
            "unknown"
        )
    return value


def _codes(attribute: Attribute) -> dict[str, int]:
    return {word: place for place, word in enumerate(attribute.domain)}


def _dense(
    path: Path, attributes: list[Attribute], rows: list[tuple[int, str]], blanks: bool
) -> tuple[NDArray[np.float64], dict[str, list[str]]]:
    split = _words if blanks else _cells
    table = []
    for number, line in rows:
        cells = split(line, f"{path}, line {number}")
        if len(cells) != len(attributes):
            raise InputError(
                f"{path}, line {number}: {len(cells)} values instead of one for each of {len(attributes)} attributes"
            )
        table.append(cells)
    values, text = np.empty((len(rows), len(attributes))), {}
    for place, (attribute, words) in enumerate(zip(attributes, zip(*table, strict=True), strict=True)):
        if attribute.kind == "string":
            text[attribute.name] = list(words)
        if attribute.kind == "numeric":
            try:
                values[:, place] = words
                if np.isfinite(values[:, place]).all():
                    continue
            except ValueError:
                pass  # an unknown value, or something to be named below
        codes = _codes(attribute)
        values[:, place] = [
            _value(attribute, codes, word, f"{path}, line {rows[row][0]}") for row, word in enumerate(words)
        ]
    return values, text


def _sparse(
    path: Path, attributes: list[Attribute], rows: list[tuple[int, str]], blanks: bool
) -> tuple[sparse.csr_array, dict[str, list[str]]]:
    strings = [attribute.name for attribute in attributes if attribute.kind == "string"]
    if strings:
        raise InputError(f"{path}: text ({first_few(strings)}) in sparse rows is not read: write them dense")
    width = len(attributes)
    codes = [_codes(attribute) for attribute in attributes]
    data: list[float] = []
    indices: list[int] = []
    indptr = [0]
    for number, line in rows:
        where = f"{path}, line {number}"
        if not line.endswith("}"):
            raise InputError(f"{where}: a sparse row must end with a brace: it ends with '{line[-10:]}'")
        last = -1
        inner = line[1:-1].strip()
        for cell in _pairs(inner, where) if inner else ():
            if len(cell) != 2 or not cell[0].isdecimal():
                raise InputError(f"{where}: '{' '.join(cell)}' must be the number of an attribute, a blank and a value")
            index = int(cell[0])
            if index >= width:
                raise InputError(f"{where}: attribute {index} is out of range: there are {width}, counted from 0")
            if index <= last:
                raise InputError(
                    f"{where}: attribute {index} comes after attribute {last}: their numbers must increase"
                )
            last = index
            indices.append(index)
            data.append(_value(attributes[index], codes[index], cell[1], where))
        indptr.append(len(indices))
    indices_, indptr_ = (np.array(each, dtype=np.int32) for each in (indices, indptr))  # as scikit-learn takes them
    table = sparse.csr_array((np.array(data, dtype=np.float64), indices_, indptr_), shape=(len(rows), width))
    table.eliminate_zeros()
    return table, {}


def _pairs(line: str, where: str) -> Iterable[list[str]]:
    """Number and value of each entry of a sparse row."""
    if "'" not in line and '"' not in line:
        return (cell.split() for cell in line.split(","))
    # A quoted value may hold commas: the blank after the number is where a quote begins.
    found, start = [], 0
    entry = re.compile(rf"\s*(\S+)\s+({_QUOTED}|[^,'\"]+?)\s*(,|$)")
    while start < len(line):
        match = entry.match(line, start)
        if match is None:
            raise InputError(
                f"{where}: '{line[start : start + 40]}' must be the number of an attribute, a blank and a value"
            )
        found.append([match[1], _unquoted(match[2])])
        start = match.end()
    return found
