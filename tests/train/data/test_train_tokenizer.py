"""`train_tokenizer` and its command: training is deterministic, drops no text, and names what it cannot do."""

import dataclasses

import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.data.train_tokenizer import TokenizerConfig, main, train_tokenizer

from ...support.tokenizer_texts import corpus


@pytest.mark.parametrize("input_sentence_size", [1_000_000, 101], ids=["all lines", "a sample of lines"])
def test_training_is_deterministic_and_silent(capfd, input_sentence_size):
    models = [
        train_tokenizer(corpus(100_000), vocab_size=500, input_sentence_size=input_sentence_size) for _ in range(2)
    ]
    assert models[0] == models[1]  # each is trained in a separate process
    assert capfd.readouterr() == ("", "")


def test_error_gives_the_limit_of_the_vocabulary_size():
    text = corpus(30_000)
    with pytest.raises(ValueError, match=r"vocab_size 50000 is more than .* at most \d+") as error:
        train_tokenizer(text, vocab_size=50_000)
    assert "trainer_interface" not in str(error.value)
    most = int(str(error.value).split("at most ")[1].split(",")[0])
    assert Tokenizer.from_bytes(train_tokenizer(text, vocab_size=most)).vocab_size == most + 1
    with pytest.raises(ValueError, match=r"vocab_size 270 is too small .* at least \d+") as error:
        train_tokenizer(text, vocab_size=270)
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    assert Tokenizer.from_bytes(train_tokenizer(text, vocab_size=least)).vocab_size == least + 1


@pytest.mark.parametrize("documents", [[], ["", " \n\t"], ["\u200b\ufeff"]])
def test_training_without_text_is_refused(documents):
    with pytest.raises(ValueError, match="no text to train on"):
        train_tokenizer(documents, vocab_size=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 260}, "vocab_size is 260"),
        ({"character_coverage": 0.5}, "character_coverage is 0.5; it must be 0.98 to 1"),
        ({"input_sentence_size": 100}, "input_sentence_size is 100; it must be above 100"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(["some text"], **{"vocab_size": 300, **arguments})


def test_a_single_string_is_not_a_list_of_documents():
    with pytest.raises(TypeError, match="list of strings"):
        train_tokenizer("a whole text", vocab_size=300)


def test_an_error_while_reading_documents_is_raised():
    def documents():
        yield from corpus(10_000)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train_tokenizer(documents(), vocab_size=300)


@pytest.mark.parametrize(
    "document",
    [
        "Жук. " * 2000,  # longer than SentencePiece allows; split at sentence ends
        "Жук " * 2000,  # split at spaces
        "Жук" * 2000,  # split anywhere
        "Жук ▅ Жук\n" * 200,  # SentencePiece's reserved character
    ],
)
def test_no_text_is_dropped_in_training(document):
    tokenizer = Tokenizer.from_bytes(train_tokenizer([*corpus(10_000), document], vocab_size=400))
    assert "Ж" in "".join(tokenizer.pieces(tokenizer.encode("Жук")))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(corpus(30_000)))
    return path


def test_command_trains_and_saves(text_file, tmp_path, capsys):
    config = TokenizerConfig(output=tmp_path / "out", text=(text_file,), vocab_size=400)
    main(config)
    tokenizer = Tokenizer.from_folder(tmp_path / "out")
    assert tokenizer.vocab_size == 401
    printed = capsys.readouterr().out
    assert "401 ids" in printed
    assert tokenizer.fingerprint[:12] in printed
    lines = text_file.read_text().split("\n")
    rate = sum(len(line.encode()) for line in lines) / sum(len(tokenizer.encode(line)) for line in lines)
    assert f"{rate:.2f} bytes per token" in printed


def test_command_replaces_another_tokenizer_only_with_overwrite(text_file, tmp_path):
    config = TokenizerConfig(output=tmp_path / "out", text=(text_file,), vocab_size=400)
    main(config)
    before = (tmp_path / "out" / "spm.model").read_bytes()
    main(config)  # the same again
    other = dataclasses.replace(config, vocab_size=420)
    with pytest.raises(ValueError, match="--overwrite"):
        main(other)
    assert (tmp_path / "out" / "spm.model").read_bytes() == before
    main(dataclasses.replace(other, overwrite=True))
    assert Tokenizer.from_folder(tmp_path / "out").vocab_size == 421


def test_command_refuses_a_file_as_folder(text_file):
    with pytest.raises(ValueError, match="is a file; name a folder"):
        main(TokenizerConfig(output=text_file))
    with pytest.raises(ValueError, match="is the text that is read; choose another folder"):
        main(TokenizerConfig(output=text_file, text=(text_file,)))
    with pytest.raises(ValueError, match=r"out is inside of .*, whose text is read; choose another folder"):
        main(TokenizerConfig(output=text_file.parent / "out", text=(text_file.parent,)))


def test_command_reads_the_embedded_corpus_by_default(tmp_path, monkeypatch):
    documents_read = []

    def train(documents, **settings):
        documents_read.extend(documents)
        return train_tokenizer(documents_read[:300], **settings)

    monkeypatch.setattr("deberta_jax.train.data.train_tokenizer.train_tokenizer", train)
    main(TokenizerConfig(output=tmp_path / "out", vocab_size=400))
    assert documents_read == list(read_documents([embedded_corpus()], boundary="line"))


def test_symbols_are_single_pieces(text_file, tmp_path):
    main(TokenizerConfig(output=tmp_path, text=(text_file,), vocab_size=400, symbols=("[E1]", "<a>")))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.vocab_size == 401
    assert tokenizer.pieces([4, 5]) == ["[E1]", "<a>"]
    assert [token for token in tokenizer.encode("she [E1]was<a>") if token < 6] == [4, 5]
    assert tokenizer.decode(tokenizer.encode("she <a> was")) == "she <a> was"


@pytest.mark.parametrize("symbol", ["", "a b", "\t", "▁a", "[MASK]", "[CLS]", "a\x07"])
def test_strings_that_cannot_be_symbols_are_named(symbol):
    with pytest.raises(UserError, match="symbols have"):
        train_tokenizer(corpus(1000), vocab_size=400, symbols=(symbol,))
    with pytest.raises(UserError, match="symbols have '<a>' twice"):
        train_tokenizer(corpus(1000), vocab_size=400, symbols=("<a>", "<a>"))
