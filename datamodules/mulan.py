"""Mulan's multi-label data sets: `<Name>.arff`, dense or sparse, with the names of its labels in `<Name>.xml`."""

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from datamodules.arff import Arff, read_arff
from datamodules.table_files import Table
from runs.errors import InputError, did_you_mean, first_few

_LABEL = "{http://mulan.sourceforge.net/labels}label"


class MulanReader:
    """A set in the Mulan format; `data.root` is the folder that holds its two files.

    Labels are told by the XML file's names, never by their place in the ARFF file, where they may stand
    first or last and in another order. They keep the order of the ARFF file.

    Args:
        name: of the set; the files are `<name>.arff` and `<name>.xml`.
        nominal: features of more than two words: a column of 0 and 1 for each word, or one column: of the
            words' places in the domain (``number``) or of the numbers that they are (``value``).
        dense: whether sparse features are filled up, which scaling needs.
        subset_rows: how many random rows are used; None for all.
        subset_seed: of their choice.
    """

    def __init__(
        self,
        name: str,
        nominal: Literal["one_hot", "number", "value"],
        dense: bool,
        subset_rows: int | None,
        subset_seed: int,
    ) -> None:
        self.name, self.nominal, self.dense = name, nominal, dense
        self.subset_rows, self.subset_seed = subset_rows, subset_seed
        self.instructions = (
            f"it must be the folder that holds {name}.arff and {name}.xml, as the KDIS multi-label resources "
            "(University of Cordoba) and Mulan publish them"
        )

    def read(self, root: Path) -> Table:
        """Reads both files.

        Raises:
            InputError: one is missing or broken, the XML file names a label that is no attribute, a label is not
                0 or 1, a sparse feature is unknown, or there are fewer rows than `subset_rows`.
        """
        for suffix, what in (("arff", "the rows"), ("xml", "the names of the labels")):
            if not (root / f"{self.name}.{suffix}").is_file():
                raise InputError(f"{root} lacks {self.name}.{suffix}, {what}: {self.instructions}")
        arff = read_arff(root / f"{self.name}.arff")
        xml = root / f"{self.name}.xml"
        names = read_label_names(xml)
        absent = [name for name in names if name not in arff.names]
        if absent:
            raise InputError(
                f"{xml} names {len(absent)} labels that are no attributes of {arff.path}: {first_few(absent)} "
                f"({did_you_mean(absent[0], arff.names)})"
            )
        chosen = set(names)
        is_label = [name in chosen for name in arff.names]
        label = np.stack([_zero_or_one(arff, place) for place, yes in enumerate(is_label) if yes], axis=1)
        if all(is_label):
            raise InputError(f"{xml} names every attribute of {arff.path}: no feature is left")
        features, columns = arff.features((place for place, yes in enumerate(is_label) if not yes), self.nominal)
        if sparse.issparse(features):
            unknown = np.flatnonzero(np.isnan(features.data))
            if len(unknown):
                row = int(np.searchsorted(features.indptr, unknown[0], side="right")) - 1
                raise InputError(
                    f"{arff.path}, line {arff.lines[row]}: {columns[features.indices[unknown[0]]]} is unknown (?): "
                    "complete it, or leave the row out"
                )
            if self.dense:
                features = features.toarray()
        table = Table(
            features=features,
            columns=columns,
            files=str(arff.path),
            label=label,
            class_names=[name for name, yes in zip(arff.names, is_label, strict=True) if yes],
        )
        return self._subset(table)

    def _subset(self, table: Table) -> Table:
        wanted = self.subset_rows
        if wanted is None:
            return table
        if not 1 <= wanted <= len(table):
            raise InputError(
                f"data.reader.subset_rows={wanted} must be from 1 to the {len(table)} rows of {table.files}"
            )
        rows = np.random.default_rng(self.subset_seed).choice(len(table), wanted, replace=False)
        return table.take(np.sort(rows))


def read_label_names(path: Path) -> list[str]:
    """Names in a Mulan label file, parents before their children where labels are nested.

    Raises:
        InputError: it is no XML, or names no label, or one twice or without a name.
    """
    try:
        labels = list(ElementTree.parse(path).iter(_LABEL))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}, line {error.position[0]}: this is no XML: {error}") from error
    names = [label.get("name") for label in labels]
    if not names or None in names:
        raise InputError(
            f'{path} must hold <label name="…"/> for each label, in the namespace http://mulan.sourceforge.net/labels'
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"{path} names the labels {first_few(doubled)} more than once")
    return names


def _zero_or_one(arff: Arff, place: int) -> NDArray[np.int64]:
    """A label column; an omitted value of a sparse row is the first word of its domain, whichever that is."""
    attribute, values = arff.attributes[place], arff.column(place)
    if attribute.kind == "nominal":
        odd = [word for word in attribute.domain if word not in ("0", "1")]
        if odd:
            raise InputError(
                f"{arff.path}: label {attribute.name} has the word {odd[0]} in its domain instead of 0 or 1"
            )
        known = ~np.isnan(values)
        values[known] = np.array([float(word) for word in attribute.domain])[values[known].astype(np.int64)]
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        where, word = f"{arff.path}, line {arff.lines[wrong[0]]}", arff.words(place)[wrong[0]]
        raise InputError(f"{where}: label {attribute.name} is '{word}' instead of 0 or 1")
    return values.astype(np.int64)
