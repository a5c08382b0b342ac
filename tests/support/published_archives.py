"""Small archives in the form in which the authors of public sets published them.

tensorflow_datasets prepares its sets from them, once it has their checksums.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from deberta_jax.train.tasks.sources.published import PUBLISHED

# ------------------------------------------------------------------------------------------------------------ records

BOOLQ = {"question": "is it", "passage": "It is.", "idx": 0, "label": True}
COPA = {
    "premise": "It rained.",
    "choice1": "I got wet.",
    "choice2": "I ate.",
    "question": "effect",
    "idx": 0,
    "label": 0,
}
COPA_CAUSE = {**COPA, "question": "cause", "choice1": "I ate.", "choice2": "Clouds came.", "idx": 1, "label": 1}
WIC = {
    "word": "bank",
    "sentence1": "By the banks.",
    "sentence2": "A bank, a bank.",
    **{"start1": 7, "end1": 12, "start2": 2, "end2": 6, "idx": 0, "label": False},
}
MULTIRC = {
    "idx": 3,
    "passage": {
        "text": "A text.",
        "questions": [
            {
                "question": "Who ?",
                "idx": 7,
                "answers": [{"text": "he", "idx": 1, "label": 1}, {"text": "she", "idx": 2, "label": 0}],
            }
        ],
    },
}
MULTIRC_TEST = json.loads(json.dumps(MULTIRC))
for answer in MULTIRC_TEST["passage"]["questions"][0]["answers"]:
    del answer["label"]
RECORD = {
    "idx": 5,
    "passage": {
        "text": "Paris and the Rhine in France.",
        "entities": [{"start": 0, "end": 4}, {"start": 10, "end": 18}, {"start": 23, "end": 28}],
    },
    "qas": [
        {"idx": 9, "query": "A river, @placeholder, flows", "answers": [{"start": 10, "end": 18, "text": "the Rhine"}]}
    ],
}
RECORD_TEST = {**RECORD, "qas": [{name: RECORD["qas"][0][name] for name in ("idx", "query")}]}
RACE = {
    "id": "high1.txt",
    "article": "A b.",
    "questions": ["Q1 ?", "It is _ ."],
    "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
    "answers": ["B", "A"],
}
ANLI = {"uid": "u", "context": "a", "hypothesis": "b", "label": "c"}
LANGUAGES = [name.partition("/")[2] for name in PUBLISHED if name.startswith("xnli/")]
XNLI = "language\tgold_label\tsentence1\tsentence2\tpairID\n" + "".join(
    f"{language}\t{label}\tp {language}\th {language}\t{pair}\n"
    for pair, label in enumerate(("entailment", "neutral"))
    for language in LANGUAGES
)
CONLL = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nruns VBZ B-VP O\n\nParis NNP B-NP B-LOC\n\n"


def json_lines(*rows: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def _unlabeled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "label"}


def _super_glue(folder: str, *rows: dict[str, Any], test: dict[str, Any]) -> dict[str, str]:
    labeled = {f"{folder}/{name}.jsonl": json_lines(*rows) for name in ("train", "val")}
    return labeled | {f"{folder}/test.jsonl": json_lines(test)}


# ----------------------------------------------------------------------------------------------------------- archives

MNLI_COLUMNS = "sentence1\tsentence2\tgold_label\n"
MNLI_ROWS = "".join(f"p {label}\th {label}\t{label}\n" for label in ("entailment", "neutral", "contradiction"))
MRPC_COLUMNS = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
ARCHIVES: dict[str, dict[str, str]] = {
    "SST-2.zip": {
        "SST-2/train.tsv": 'sentence\tlabel\na "good film\t1\nbad\t0\ncafé\t1\n',
        "SST-2/dev.tsv": "sentence\tlabel\nfair\t1\n",
        "SST-2/test.tsv": "index\tsentence\n0\thidden\n",
    },
    "MNLI.zip": {
        "MNLI/train.tsv": MNLI_COLUMNS + MNLI_ROWS,
        "MNLI/dev_matched.tsv": MNLI_COLUMNS + MNLI_ROWS,
        "MNLI/dev_mismatched.tsv": MNLI_COLUMNS + "other p\tother h\tneutral\n",
        "MNLI/test_matched.tsv": "sentence1\tsentence2\nt\tu\n",
        "MNLI/test_mismatched.tsv": "sentence1\tsentence2\nv\tw\n",
    },
    "STS-B.zip": {
        "STS-B/train.tsv": "sentence1\tsentence2\tscore\na\tb\t4.5\nc\t\t0.0\n",
        "STS-B/dev.tsv": "sentence1\tsentence2\tscore\na\tb\t5.0\n",
        "STS-B/test.tsv": "sentence1\tsentence2\ne\tf\n",
    },
    "ReCoRD.zip": _super_glue("ReCoRD", RECORD, test=RECORD_TEST),
    "BoolQ.zip": _super_glue("BoolQ", BOOLQ, {**BOOLQ, "idx": 1, "label": False}, test=_unlabeled(BOOLQ)),
    "COPA.zip": _super_glue("COPA", COPA, COPA_CAUSE, test=_unlabeled(COPA)),
    "WiC.zip": _super_glue("WiC", WIC, {**WIC, "idx": 1, "label": True}, test=_unlabeled(WIC)),
    "MultiRC.zip": _super_glue("MultiRC", MULTIRC, test=MULTIRC_TEST),
    "anli_v0.1.zip": {
        f"anli_v0.1/R1/{name}.jsonl": json_lines(ANLI, {**ANLI, "uid": "v", "label": "e"})
        for name in ("train", "dev", "test")
    },
    "XNLI-1.0.zip": {"XNLI-1.0/xnli.dev.tsv": XNLI, "XNLI-1.0/xnli.test.tsv": XNLI},
    "conll2003.zip": {"train.txt": CONLL, "valid.txt": CONLL, "test.txt": CONLL},
    "RACE.tar.gz": {
        f"RACE/{split}/{level}/1.txt": json.dumps({**RACE, "article": f"{level} {split}"})
        for split in ("train", "dev", "test")
        for level in ("high", "middle")
    },
}
FILES = {
    "msr_paraphrase_train.txt": f"\ufeff{MRPC_COLUMNS}1\t1\t2\ta\tsame a\n0\t3\t4\tb\tc\n1\t5\t6\td\tsame d\n",
    "msr_paraphrase_test.txt": f"{MRPC_COLUMNS}1\t7\t8\te\tsame e\n",
    "data_mrpc_dev_ids.tsv": "5\t6\n",
}

# -------------------------------------------------------------------------------------------------------------- SQuAD

CONTEXT = "Anne was happy; Emma was not."


def squad_question(name: str, *answers: tuple[str, int], question: str = "Who was happy?", **more: Any) -> dict:
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": question, "answers": listed, **more}


def squad_file(*questions: Any, context: str = CONTEXT) -> dict[str, Any]:
    return {"version": "x", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def _squad_files() -> dict[str, str]:
    train = squad_question("a", ("Anne", 0)), squad_question("b", ("Emma", 16), question="Who was not?")
    answers = squad_question("c", ("Anne", 0), ("Anne was happy", 0))
    no_answer = {"is_impossible": True, "plausible_answers": [{"text": "Emma", "answer_start": 16}]}
    contents = {
        "train-v1.1.json": squad_file(*train),
        "dev-v1.1.json": squad_file(answers),
        "train-v2.0.json": squad_file(
            *({**question, "is_impossible": False} for question in train), squad_question("d", **no_answer)
        ),
        "dev-v2.0.json": squad_file({**answers, "is_impossible": False}, squad_question("e", **no_answer)),
    }
    return {name: json.dumps(content) for name, content in contents.items()}


# ----------------------------------------------------------------------------------------------------- on the machine


def write_archives(folder: Path) -> None:
    for name, members in ARCHIVES.items():
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / name, "w") as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
        else:
            with tarfile.open(folder / name, "w:gz") as archive:
                for member, content in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content.encode())
                    archive.addfile(info, io.BytesIO(content.encode()))
    for name, content in (FILES | _squad_files()).items():
        (folder / name).write_text(content, encoding="utf-8")


def builder_class(name: str) -> Any:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text

    return tfds.builder_cls(name)


@contextlib.contextmanager
def accepted_by_tfds(folder: Path) -> Iterator[None]:
    """tensorflow_datasets expects the checksums of the archives in this folder instead of the published ones."""
    with contextlib.ExitStack() as stack:
        for name in ("glue", "super_glue", "anli", "xnli", "race", "squad"):
            builder = builder_class(name)
            infos = {
                url: dataclasses.replace(info, size=len(data), checksum=hashlib.sha256(data).hexdigest())
                for url, info in builder.url_infos.items()
                if (folder / info.filename).is_file()
                for data in [(folder / info.filename).read_bytes()]
            }
            stack.enter_context(mock.patch.object(builder, "url_infos", infos))
        yield
