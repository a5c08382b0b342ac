"""Decides which label of the data is which output of the model.

The first of these that applies gives the classes and their order:

1. the list that the user gave (`--labels`);
2. the classes of the model to start from, if they include every label of training: the head keeps its meaning;
3. the official classes of a published set, or the class names that a file or a set declares;
4. the labels of training and validation, sorted.

Labels are compared with given names in any case, spacing and Unicode form. Whole numbers are also compared with the
positions of the classes of 1 and 2.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from deberta_jax.errors import UserError
from deberta_jax.terminal import list_names, quote_names, shorten

_MOST_GROUPS = 3  # of similar classes, in the notes


@dataclasses.dataclass(frozen=True)
class Head:
    """The classifier of the model to start from.

    Attributes:
      size: number of outputs; 0 if there is no classifier.
      names: the name of each output; empty if unknown.
    """

    size: int = 0
    names: tuple[str, ...] = ()


NO_HEAD = Head()


@dataclasses.dataclass(frozen=True)
class ClassChoice:
    """What the classes are chosen from, besides the labels.

    Attributes:
      given: the list of the user, or empty.
      head: the classifier of the model to start from.
      declared: the official classes of a published set or the names that the source declares, or empty.
      order: sorts labels that have no other order.
    """

    given: tuple[str, ...]
    head: Head
    declared: tuple[str, ...]
    order: Callable[[Collection[str]], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a task.

    Attributes:
      names: the name of each class by index.
      unseen: labels of held-out splits that the model does not have. Their indices follow those of the classes, so that
        they count as wrongly predicted.
      indices: the index of each label of the data.
      origin: the words for a class in errors.
      notes: messages to the user by split.
    """

    names: tuple[str, ...]
    unseen: tuple[str, ...]
    indices: Mapping[str, int]
    origin: str
    notes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def index(self, label: str, *, owner: str = "") -> int:
        """Returns the index of a label. `owner` follows the label in errors.

        Raises:
          UserError: if there is no such class.
        """
        if label not in self.indices:
            raise UserError(f"label {shorten(repr(label))}{owner} is not {self.origin}: {list_names(self.names)}")
        return self.indices[label]


def choose_classes(labels: Mapping[str, Collection[str]], choice: ClassChoice, *, table: str) -> Classes:
    """Returns the classes of a task.

    Args:
      labels: the different labels of each split: "train", the validation splits and "test".
      choice: what the classes are chosen from.
      table: the name of the training table, for errors.

    Raises:
      UserError: if training has no labels, or a single one and neither the user nor a head gives the classes.
    """
    train = set(labels["train"])
    head = _head_names(train, choice.head)
    if not train or (len(train) < 2 and not (choice.given or head)):
        only = f"only one class, {next(iter(train))!r}" if train else "no labels"
        raise UserError(f"{table} has {only}; training needs at least two classes")
    held_out = {name: set(split) - train for name, split in labels.items() if name != "train"}
    others = set().union(*held_out.values())
    origin = "a class of training"
    if choice.given:
        names, origin = choice.given, "one of the given labels"
        indices = _indices_of(train, others, names, positions=True)
    elif head:
        names = head
        indices = _indices_of(train, others, names, positions=True)
    elif choice.declared:
        names = choice.declared
        indices = _indices_of(train, others, names, positions=False)
    else:
        known = match_names(train | others, tuple(train)).keys()
        names = tuple(choice.order(train | _new_labels(labels, known, but="test")))
        indices = match_names(train | others, names)
    unseen = set() if choice.given or (choice.declared and not head) else _new_labels(labels, indices.keys())
    indices = {**indices, **{label: len(names) + place for place, label in enumerate(sorted(unseen))}}
    classes = Classes(names, tuple(sorted(unseen)), indices, origin)
    used = {indices[label] for label in train if label in indices}
    notes = {name: _held_out_notes(split, used, classes) for name, split in held_out.items()}
    notes["train"] = _training_notes(train, classes)
    if choice.given or head:  # more classes than the data need are a choice worth a note
        missing = [name for index, name in enumerate(names) if index not in used]
        notes["train"] += (f"no example of {quote_names(missing)}",) if missing else ()
    return dataclasses.replace(classes, notes=notes)


def _new_labels(labels: Mapping[str, Collection[str]], known: Collection[str], *, but: str = "") -> set[str]:
    """Returns the labels of held-out splits that are not `known`.

    The split `but` is left out, and so is a split whose labels seem to be the known ones in another form: several
    labels of which none is known, or a number where the known ones are names. They are an error.
    """
    new: set[str] = set()
    for name, split in labels.items():
        unknown = set(split) - set(known)
        is_number = any(_position(label) is not None for label in unknown)
        other_form = len(unknown) > 1 or is_number != any(_position(label) is not None for label in known)
        if name not in ("train", but) and (len(unknown) < len(set(split)) or not other_form):
            new |= unknown
    return new


def match_names(labels: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """Returns the index of every label that is one of `names`, exactly or else in any case, spacing and Unicode form.

    A label that resembles several names, and equals none, has no index.
    """
    exact = {name: index for index, name in enumerate(names)}
    similar: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        similar.setdefault(_normal_form(name), []).append(index)
    found = {}
    for label in labels:
        candidates = [exact[label]] if label in exact else similar.get(_normal_form(label), [])
        if len(candidates) == 1:
            found[label] = candidates[0]
    return found


def _normal_form(name: str) -> str:
    """Returns the form in which names are compared: no case, and one underscore for spaces, hyphens and underscores."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")  # such as a zero-width space
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFKC", text).strip())


def _head_names(train: Collection[str], head: Head) -> tuple[str, ...]:
    """Returns the names of the outputs of a head that has every label of training, else an empty tuple."""
    if not _are_positions(train, head.size) or _may_number_other_classes(train, head.size):
        return head.names if match_names(train, head.names).keys() >= set(train) else ()
    if head.names:
        return head.names if len(_indices_of(train, (), head.names, positions=True)) == len(train) else ()
    prefix = "" if all(label.isdecimal() for label in train) else "LABEL_"
    return tuple(f"{prefix}{index}" for index in range(head.size))


def _indices_of(
    train: Collection[str], others: Collection[str], names: Sequence[str], *, positions: bool
) -> dict[str, int]:
    """Returns the index of every label that is one of `names`.

    If no label of training is, and `positions` is set, labels may also be the positions of the names.
    """
    if not match_names(train, names) and positions and _are_positions(train, len(names)):
        numbers = {label: _position(label) for label in (*train, *others)}
        return {label: number for label, number in numbers.items() if number is not None and number < len(names)}
    return match_names((*train, *others), names)


def _are_positions(labels: Collection[str], size: int) -> bool:
    """Returns whether all labels are numbers, or placeholders with numbers, of outputs of a head."""
    return all((number := _position(label)) is not None and number < size for label in labels)


def _may_number_other_classes(labels: Collection[str], size: int) -> bool:
    """Returns whether numbers count fewer classes than a head has, from 0 or 1 on.

    0 and 1 are more likely the classes of another task than two of the three classes of a head.
    """
    numbers = sorted({int(label) for label in labels if label.isdecimal() and len(label) < 10})
    return 0 < len(numbers) < size and numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))


def _position(label: str) -> int | None:
    """Returns the number of a label such as "1", or of a placeholder of transformers such as "LABEL_1"."""
    match = re.fullmatch(r"(?:label_)?([0-9]{1,9})", label.strip(), re.IGNORECASE)
    return int(match[1]) if match else None


def _training_notes(train: Collection[str], classes: Classes) -> tuple[str, ...]:
    notes = _renamed(train, classes)
    similar: dict[str, list[str]] = {}
    for name in classes.names:
        similar.setdefault(_normal_form(name), []).append(name)
    groups = [group for group in similar.values() if len(group) > 1]
    for group in groups[:_MOST_GROUPS]:
        notes.append(
            f"{quote_names(group)} are {len(group)} classes, though they differ only in case, "
            "spacing or Unicode form; name the classes with --labels to join them"
        )
    if len(groups) > _MOST_GROUPS:
        notes.append(f"so do {len(groups) - _MOST_GROUPS:,} further groups of classes")
    return tuple(notes)


def _held_out_notes(new: Collection[str], used: Collection[int], classes: Classes) -> tuple[str, ...]:
    """Returns the notes about labels that training does not have. `used` are the classes of training."""
    notes = _renamed(new, classes)
    indices = {label: classes.indices[label] for label in sorted(new) if label in classes.indices}
    classes_of_validation = [
        classes.names[index] for index in indices.values() if index < len(classes.names) and index not in used
    ]
    if classes_of_validation:
        notes.append(f"no example in training of {quote_names(classes_of_validation)}")
    if wrong := [label for label, index in indices.items() if index >= len(classes.names)]:
        notes.append(
            f"{quote_names(wrong)} counted as wrongly predicted: not among the classes {quote_names(classes.names)}"
        )
    return tuple(notes)


def _renamed(labels: Collection[str], classes: Classes) -> list[str]:
    """Returns a note about the labels that are read as classes of another name, if there are any."""
    pairs = [(label, classes.indices[label]) for label in sorted(labels) if label in classes.indices]
    read = [
        f"{label!r} as {classes.names[index]!r}"
        for label, index in pairs
        if index < len(classes.names) and classes.names[index] != label
    ]
    return [f"labels read by the classes' names: {list_names(read)}"] if read else []
