"""The tags of entities: B-PER, I-PER and O, also in the schemes IOBES and BILOU."""

from collections.abc import Sequence

# Letters before the hyphen. BILOU writes L and U for the tags that IOBES calls E (end) and S (single).
ENTITY_PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}


def marks_entities(tags: Sequence[str]) -> bool:
    """Returns whether tags mark entities ("B-PER", "I-PER", "O"; also IOBES and BILOU) rather than parts of speech.

    The case of the letter before the hyphen is of no importance.
    """
    marked = [tag for tag in tags if tag.upper() != "O"]
    return bool(marked) and all(tag[:1].upper() in ENTITY_PREFIXES and tag[1:2] == "-" and tag[2:] for tag in marked)


def split_tags(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the prefix (B, I, E or S) and the kind of each tag of a model.

    A name without a prefix is a kind by itself that continues, as if it had I: transformers' rule. E and S, and L and
    U, are prefixes only if all names have one. Deliberate difference: transformers knows only B and I.
    """
    has_scheme = marks_entities(names)
    tags = []
    for name in names:
        prefix = name[:1].upper() if has_scheme else name[:1]
        known = ENTITY_PREFIXES if has_scheme else ("B", "I")
        is_tag = name[1:2] == "-" and prefix in known
        tags.append((ENTITY_PREFIXES[prefix], name[2:]) if is_tag else ("I", name))
    return tags
