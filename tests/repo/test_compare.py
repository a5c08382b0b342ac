"""The table of features of docs/compare.md: our own column is run, and the page has every row."""

from ..benchmarks.compare import BENCHMARKS, PAGE
from ..benchmarks.features import FEATURES, Source, answer
from ..support.paths import REPOSITORY


def test_this_library_can_what_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for row in FEATURES:
        ours = answer(row.ours, "deberta_jax")
        assert isinstance(row.ours, Source) or ours == "yes"
        assert f"| {row.name} | {ours} |" in text


def test_sources_of_ours_are_files() -> None:
    for row in FEATURES:
        if isinstance(row.ours, Source):
            assert (REPOSITORY / row.ours.where).exists()


def test_a_library_that_is_not_installed_says_so() -> None:
    assert answer(lambda: True, "no_such_package_of_this_name") == "not installed"


def test_every_benchmark_has_its_place_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for section in ("features", *BENCHMARKS):
        assert text.count(f"<!-- {section} -->") == text.count(f"<!-- end of {section} -->") == 1
    assert all((REPOSITORY / "tests" / "benchmarks" / f"{module}.py").exists() for module, *_ in BENCHMARKS.values())
