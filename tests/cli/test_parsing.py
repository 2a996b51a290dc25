"""The words of the command line: what is parsed, what is refused and with which message, and what ``--help`` shows."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from stability.cli import loo, options, run, select
from stability.cli.commands import COMMANDS, main
from stability.cli.parsing import application, called, names, told
from stability.leave_one_out.estimators import Auto, Exact
from stability.studies.named import PAPER, STUDIES
from stability.studies.protocol import UNUSED, Protocol
from stability.training import FineTuning
from stability.training.stopping import EarlyStopping


def told_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``--help`` prints, without the frames and on one line."""
    assert main([*arguments, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run mine --problem digits --selectors full --seed 3", "run NAME has no --seed: did you mean --seeds?"),
        ("loo --selector full --step 3", "loo has no --step: did you mean --steps?"),
        ("loo --selector full --retraining=3", "loo has no --retraining: did you mean --retrainings?"),
        ("loo --sel full", "loo has no --sel: did you mean --selector?"),
        ("run digits --fig x", "run digits has no --fig"),
        ("loo --selector full --wildly-different 3", "see 'stability loo --help'"),
    ],
)
def test_abbreviated_options_are_refused(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "give a command: run, loo, compare"),
        ("lo", "there is no command 'lo': did you mean loo?"),
        ("fit", "there is no command 'fit': use run, loo, compare"),
        ("loo", "loo: --selector needs a value; see 'stability loo --help'"),
        ("loo --selector", "loo: --selector needs a value"),
        ("loo --selector full --steps 2.5", "loo: invalid value for --steps: '2.5' is not a whole number"),
        ("loo --selector full --seed one", "'one' is not a whole number"),
        ("loo --selector full --learning-rate fast", 'unable to convert "fast" into float'),
        ("loo --selector full --ridge paper1", 'unable to convert "paper1"'),
        ("loo --selector full --schedule cosine", 'Choose from: "constant", "linear"'),
        ("loo --selector full --no-json", "loo has no --no-json"),
        ("run digits --executor dask", "executor = 'dask': use 'local' or 'ray'"),
        ("run mine.toml --selectors full --workers=0", "workers = 0: use a whole number of at least 1"),
        ("run digits --workers 2.5", "run: invalid value for --workers: '2.5' is not a whole number"),
        ("loo --selector full sam --workers -1 --n 20", "workers = -1: use a whole number of at least 1"),
        ("loo --executor ray --address head --selector full", "address = head: give HOST:PORT of the cluster's head"),
        ("compare full lora rank=4 --address head:6379", "give that too (--executor ray), or leave it out"),
        ("run digits --executor", "run: --executor needs a value"),
        ("loo --selector full --text a b c", "--text accepts at most 2 elements. Got 3"),
        ("loo --selector lora --option rank", "'rank' is not of the form NAME=VALUE"),
        ("loo --selector full sam", "one method at a time: leave sam out, or use 'stability compare'"),
        ("loo --selector rank=4", "'rank=4' is a setting and stands before any method"),
        ("loo --selector lora rank=4 rank=8", "lora has rank twice"),
        ("loo --selector random sparsity=0.1,0.2", "use one p, or 'stability compare' for several"),
        ("loo --selector lora --rank 4", "it is a setting of lora and lift, written after the method: --selector lora rank=4"),
        ("run x --problem digits --selectors full lora --rank=4", "written after the method: --selectors lora rank=4"),
        ("loo --selector full --lr 4", "loo has no --lr: did you mean --learning-rate?"),
        ("loo --selector ful", "unknown selector 'ful': did you mean full?"),
        ("loo --selector peft:LoraConf", "did you mean LoraConfig"),
        ("run mine --problem digits --selectors", "run NAME: --selectors needs a value"),
        ("run", "run needs the name of a study: there is digits, "),
        ("run --problem digits --selectors full", "run NAME: NAME needs a value"),
        ("bounds --lipschitz 1", "needs a value"),
        ("table --paper third", 'Choose from: "main", "perturbation"'),
        ("doctor --jsn", "doctor has no --jsn: did you mean --json?"),
    ],
)
def test_words_that_make_no_sense_are_refused(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("stability: ")
    assert message in captured.err
    assert captured.out == ""


def test_an_option_of_another_study_says_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--steps", "3"]) == 2
    assert "--steps belongs to --problem and the studies paper, paper-perturbation" in capsys.readouterr().err
    assert main(["run", "digits", "--mixout", "0.5"]) == 2
    assert "--mixout belongs to the studies paper, " in capsys.readouterr().err


def test_the_word_of_the_study_may_stand_anywhere() -> None:
    for words in (["digits-short", "--plan"], ["--plan", "digits-short"], ["--store", "x.sqlite", "digits-short", "--plan"]):
        found = run.asked(words)
        assert found is not None
        assert found.study is STUDIES["digits-short"]
        assert found.stored.plan


def test_the_last_of_a_repeated_option_counts_and_given_defaults_are_given() -> None:
    words = "mine --problem digits --selectors full --steps 9 --steps=3 --no-dropout --evaluate-every 2 --patience 4 --samples 2"
    found = run.asked(words.split())
    assert found is not None
    (algorithm,) = found.study.algorithms
    assert isinstance(algorithm, FineTuning)
    assert (algorithm.steps, algorithm.dropout) == (3, False)
    assert algorithm.early_stopping == EarlyStopping(2, 4)
    assert found.study.samples == (0, 1)
    assert found.study.estimator == Auto()
    exact = run.asked([*words.split(), "--estimator", "exact"])
    assert exact is not None
    assert exact.study.estimator == Exact()


def test_negative_numbers_are_values() -> None:
    app = application("test")
    seen: list[Any] = []

    @app.default
    def command(*, objective: options.Objective = options.Objective()) -> None:  # noqa: B008
        seen.append(objective)

    for text in ("-1e-3", "-.5", "-3"):
        called(app, ["--ridge", text])
    assert [objective.ridge for objective in seen] == [-1e-3, -0.5, -3]


def test_the_options_of_a_paper_s_study_are_the_fields_of_its_part() -> None:
    for name, protocol in PAPER.items():
        known = names(run._form(run._of_paper(name), name))
        wanted = {field.name for field in fields(Protocol)} - {"part", *UNUSED[protocol.part]}
        assert {f"--{field.replace('_', '-')}" for field in wanted} <= known
        assert not {f"--{field.replace('_', '-')}" for field in UNUSED[protocol.part]} & known


@pytest.mark.parametrize("command", [loo.loo, select.select, run._named, run._own, run._of_paper("paper"), run._of_file])
def test_every_option_has_help(command: Any) -> None:
    """From the dataclass of options, or from the class to whose settings it is handed on."""
    kinds = [kind for kind in get_type_hints(command).values() if is_dataclass(kind) and isinstance(kind, type)]
    assert kinds
    for kind in kinds:
        known = told(kind)
        for field in fields(kind):
            in_annotation = [one.help for one in getattr(field.type, "__metadata__", ()) if one.help]
            assert known.get(field.name) or in_annotation, (kind, field.name)


def test_help_of_a_setting_is_one_sentence_for_a_terminal() -> None:
    def owner(split_seed: int, text: str | None, rate: float, pool: int) -> None:
        """Nothing.

        Args:
            split_seed: draws what is held out, as :func:`stability.load` says. Much more is to be said of it.
            text: the column of texts, e.g. ``words``. By default the usual names. It is drawn with ``split_seed``.
            rate: of AdamW.
            pool: so many examples, drawn with ``split_seed``; None for all.
        """

    assert told(owner) == {
        "split_seed": "Draws what is held out, as load says",
        "text": "The column of texts, e.g. words; by default the usual names",
        "rate": "Rate of AdamW",
        "pool": "So many examples, drawn with --split-seed",
    }


def test_help_is_in_groups_and_comes_from_what_the_options_set(capsys: pytest.CaptureFixture[str]) -> None:
    text = told_by(capsys, "loo")
    order = ["Data", "Model", "Method", "Training", "Estimator", "Bounds", "Output", "Machine"]
    places = [text.index(f"─ {group} ─") for group in order]
    assert places == sorted(places)
    patience = inspect.cleandoc(EarlyStopping.__doc__ or "").split("patience: ")[1].split(".\n")[0]
    assert " ".join(patience.split())[1:] in text
    assert "[default: digits]" in text
    assert "of texts steps 150, batch size 16" in text
    assert ":class:" not in text
    assert "``" not in text


def test_help_of_each_form_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = told_by(capsys, "run")
    assert "There are four forms" in text
    assert "--problem" in text
    assert told_by(capsys, "run", "mine") == text
    assert "--steps" not in told_by(capsys, "run", "digits")
    quick = told_by(capsys, "run", "paper-quick")
    assert "[default: 32]" in quick
    assert "lora=0.005" in quick
    assert "[default: 40000]" in told_by(capsys, "run", "paper")
    assert "Usage: stability run study.toml [OPTIONS]" in told_by(capsys, "run", "study.toml")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told_by(capsys, command).startswith(f"Usage: stability {command}")


@pytest.mark.parametrize(("words", "reader"), [("list", "head -1"), ("list", "true"), ("--help", "true")])
def test_a_pipe_that_is_closed_early_is_no_error(words: str, reader: str) -> None:
    """In a real shell: a reader that takes one line, and one that is gone before anything is written."""
    command = f"{sys.executable} -m stability {words} | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_version_do_without_torch() -> None:
    code = "import sys; from stability.cli.commands import main; assert main([{}]) == 0; print('torch' in sys.modules)"
    for words in ("'--help'", "'--version'"):
        done = subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")


def test_workers_that_make_no_sense_are_refused_without_torch() -> None:
    code = (
        "import sys; from stability.cli.commands import main; "
        "assert main(['run', 'digits', '--executor', 'dask']) == main(['loo', '--workers', '0']) == 2; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_ctrl_c_while_a_command_is_imported_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stability.cli.commands._call", interrupted)
    assert main(["run", "digits"]) == 130
    assert capsys.readouterr().err == "stability: stopped; what is finished is kept, and the same command goes on from there\n"


def test_a_mask_that_training_finds_may_diverge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message has the learning rate of the problem where none was asked for."""
    command = ["select", "--selector", "childpruning", "--sparsity", "0.1", "--n", "20", "--steps", "30", "--device", "cpu"]
    assert main([*command, "--weight-decay", "1e9", "--out", str(tmp_path / "mask.safetensors")]) == 1
    assert "use a smaller learning rate than 0.003" in capsys.readouterr().err


def test_a_study_file_has_its_own_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "study.toml", "--problem", "digits", "--selectors", "full"]) == 2
    assert "study.toml names its own problem: leave --problem out" in capsys.readouterr().err
