"""The counts of tools/structure.py: their rules on a small package, and the limits that this checkout keeps."""

import threading
from pathlib import Path

import pytest

from counts.docstrings import docstring_count, first_word
from counts.fields import models_of
from counts.imports import reach_count
from counts.kinds import kind_check_count, kinds_of, touched_count
from counts.names import meeting_count, shared_name_count
from counts.rl_step import function_lines, recorded_calls
from counts.source import Package
from structure import measure, show_offenders

CHECKOUT = Path(__file__).resolve().parents[2]
LIMITS = {
    "reach": 58.5,
    "kinds": 3,
    "touched": 4,
    "names": 0,
    "meetings": 0,
    "docstrings": 5.0,
    "fields": 0,
}
"""The largest value of each count; lower them as the values fall."""

FILES = {
    "__init__.py": "",
    "recipe/__init__.py": "from toy.recipe.stages import Sft\n",
    "recipe/stages.py": (
        "class _Stage: ...\n"
        "class Kl:\n    kind: Literal['k1']\n"
        "class Sft(_Stage):\n    kind: Literal['sft']\n"
        "class Ppo(_Stage):\n    kind: Literal['ppo']\n"
        "Stage = Annotated[Sft | Ppo, Field()]\n"
    ),
    "plan.py": (
        '"""Of one stage."""\n'
        "from toy.recipe import Sft\n"
        "def work(stage):\n"
        '    """How much."""\n'
        "    if isinstance(stage, Sft) or stage.kind == 'ppo':\n"
        "        return 'sft'\n"
        "LIMIT = 1\n"
        '"""The most."""\n'
        "class Batch: ...\n"
    ),
    "train.py": "class Batch: ...\n_NAMES = {'sft': 1, 'ppo': 2}\n",
    "stages/__init__.py": "",
    "stages/ppo.py": (
        "if TYPE_CHECKING:\n    import toy.late\nfrom toy.plan import work\ndef run():\n    from toy import train\n"
    ),
    "late.py": "",
}


@pytest.fixture
def toy(tmp_path: Path) -> Package:
    for name, text in FILES.items():
        path = tmp_path / "platform" / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package(tmp_path, "toy")


def test_imports_inside_functions_count_and_those_for_type_checkers_do_not(toy: Package) -> None:
    count = reach_count(toy)
    assert count.value == 87.5
    reached = [offender.file.removeprefix("platform/toy/") for offender in count.offenders]
    assert reached == [
        *("__init__.py", "plan.py", "recipe/__init__.py", "recipe/stages.py"),
        *("stages/__init__.py", "stages/ppo.py", "train.py"),
    ]


def test_a_stage_kind_is_a_member_of_the_union(toy: Package) -> None:
    assert [(kind.type_name, kind.name, kind.supervised) for kind in kinds_of(toy)] == [
        ("Sft", "sft", True),
        ("Ppo", "ppo", False),
    ]


def test_checks_of_a_kind_are_found_by_class_and_by_name(toy: Package) -> None:
    assert [str(offender) for offender in kind_check_count(toy).offenders] == [
        "platform/toy/plan.py:5: isinstance(stage, Sft)",
        "platform/toy/plan.py:5: stage.kind == 'ppo'",
    ]


def test_a_file_knows_a_kind_by_its_class_or_in_a_list_of_kinds_but_not_by_a_word(toy: Package) -> None:
    count = touched_count(toy)
    files = [offender.file.removeprefix("platform/toy/") for offender in count.offenders]
    assert files == ["plan.py", "recipe/__init__.py", "recipe/stages.py", "train.py"]
    assert count.value == 4


def test_a_name_of_two_types_meets_where_both_their_modules_are_imported(toy: Package) -> None:
    assert shared_name_count(toy).detail == "Batch 2"
    assert [str(offender) for offender in meeting_count(toy).offenders] == [
        "platform/toy/stages/ppo.py:5: Batch of toy.plan and of toy.train"
    ]


def test_docstrings_of_modules_functions_and_names_are_read(toy: Package) -> None:
    count = docstring_count(toy)
    assert count.detail == "2 of 3"
    assert [offender.line for offender in count.offenders] == [1, 4]


@pytest.mark.parametrize(("text", "word"), [("Of one.", "of"), ("(in bytes)", "in"), ("`x` of y", "`x`"), (" ", "")])
def test_the_first_word_is_compared_without_punctuation(text: str, word: str) -> None:
    assert first_word(text) == word


def test_calls_of_this_thread_and_of_new_ones_are_recorded() -> None:
    def here() -> None: ...

    def there() -> None: ...

    def before() -> None: ...

    before()
    with recorded_calls() as called:
        here()
        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
    assert {here.__code__, there.__code__} <= called
    assert before.__code__ not in called


def test_a_function_has_the_lines_from_its_head_to_its_last_statement() -> None:
    def three(number: int) -> int:
        number += 1
        return number

    first = three.__code__.co_firstlineno
    assert list(function_lines(three.__code__)) == [first, first + 1, first + 2]


def test_the_fields_of_every_stage_kind_are_reached() -> None:
    reached = {model.__name__ for model in models_of(CHECKOUT)}
    assert {kind.type_name for kind in kinds_of(Package(CHECKOUT))} <= reached


@pytest.mark.slow
def test_this_checkout_keeps_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    counts = measure(CHECKOUT)
    over = [count.key for count in counts if count.value > LIMITS[count.key]]
    show_offenders(counts, over)
    assert not over, capsys.readouterr().out
