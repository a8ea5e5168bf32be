"""Every mistake on the command line is answered by one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_helpers import error_of, path_of

from fedmoe import cli
from fedmoe.data import IID, Partition
from fedmoe.errors import UserError
from fedmoe.methods import PromptFL

pytestmark = pytest.mark.usefixtures("in_empty_folder")

ROOT = Path(__file__).parent.parent

# Private names: reached by their path, never offered as a valid short name to other tests.


class _Refusing(IID):
    def __init__(self, size: int = 3) -> None:
        raise ValueError(f"size {size} is\nnot even")


class _Buggy(IID):
    def __init__(self, size: int = 3) -> None:
        raise KeyError("a real bug")


class _Folder(Partition):
    def __init__(self, root: str) -> None:
        self.root = root

    def split(self, train, test, num_classes, num_clients, seed):
        return []


@dataclass(frozen=True)
class _Skew(IID):
    power: float = 0.5


class _BuggyMethod(PromptFL):
    def __init__(self) -> None:
        raise KeyError("a real bug")


# Arguments of fit, and the sentence.
COMMAND_LINE = [
    # unknown options
    ("--federation.ronds=3", "--federation.ronds is not a known option; did you mean '--federation.rounds'?"),
    ("--federation.ronds 3", "--federation.ronds is not a known option; did you mean '--federation.rounds'?"),
    ("--federaton.rounds=3", "--federaton.rounds is not a known option; did you mean '--federation.rounds'?"),
    ("--rounds=3", "--rounds is not a known option; did you mean '--federation.rounds'?"),
    ("--num_experts=3", "--num_experts is not a known option; did you mean '--method.num_experts'?"),
    (
        "--optim.lr=3",
        "--optim.lr is not a known option; did you mean '--optim.prompt_lr' or '--optim.gating_lr'?",
    ),
    ("--lr=3", "--lr is not a known option; did you mean '--optim.prompt_lr' or '--optim.gating_lr'?"),
    ("--clip.size=3", "--clip.size is not a known option; did you mean '--data.size'?"),
    (
        "--output.qqq=3",
        "--output.qqq is not a known option; valid is dir, name or overwrite.",
    ),
    ("-s 3", "-s is not a known option."),
    ("-seed=3", "-seed is not a known option; did you mean '--seed'?"),
    # abbreviations
    ("--federation.round=3", "--federation.round is not a known option; did you mean '--federation.rounds'?"),
    ("--see=3", "--see is not a known option; did you mean '--seed'?"),
    ("--partition.alph=3", "--partition.alph is not a setting of Dirichlet; did you mean '--partition.alpha'?"),
    # settings of classes
    ("--partition.alhpa=3", "--partition.alhpa is not a setting of Dirichlet; did you mean '--partition.alpha'?"),
    (
        "--partition.init_args.alhpa=3",
        "--partition.alhpa is not a setting of Dirichlet; did you mean '--partition.alpha'?",
    ),
    (
        "--partition.zzz=3",
        "--partition.zzz is not a setting of Dirichlet; valid is alpha, min_size, seed, min_test, cap or over.",
    ),
    ("--partition=IID --partition.zzz=3", "--partition.zzz is not a setting of IID; valid is seed."),
    (
        "--partition=IID --partition.alpha=3",
        "--partition.alpha is not a setting of IID; Dirichlet or DomainDirichlet has it and must be chosen first.",
    ),
    (
        "--method.personal_vectors=1 --method=FedPer",
        "--method.personal_vectors is not a setting of PFedMoAP; --method=FedPer must stand before it.",
    ),
    (
        "--method.epochs=3 --method fedmoe.methods.CoOp",
        "--method.epochs is not a setting of PFedMoAP; --method=fedmoe.methods.CoOp must stand before it.",
    ),
    (
        "--partition.power=0.7 --partition test_cli_errors._Skew",
        "--partition.power is not a setting of Dirichlet; --partition=test_cli_errors._Skew must stand before it.",
    ),
    (
        "--partition.alhpa=0.7 --partition=nowhere.Skew",
        "--partition.alhpa is not a setting of Dirichlet; did you mean '--partition.alpha'?",
    ),
    ("--partition.rounds=3", "--partition.rounds is not a setting of Dirichlet; did you mean '--federation.rounds'?"),
    (
        "--methods+=CoOp --methods.epoch=3",
        "methods[0].epoch is not a setting of CoOp; did you mean 'methods[0].epochs'?",
    ),
    ("--methods.epochs=3", "methods.epochs belongs to no class; methods must be given before it."),
    # values
    ("--federation.rounds=abc", "federation.rounds is 'abc'; valid is an integer."),
    ("--federation.rounds=1e1", "federation.rounds is '1e1'; valid is an integer."),
    ("--seed=3.5", "seed is '3.5'; valid is an integer."),
    ("--seed=null", "seed is 'null'; valid is an integer."),
    ("--optim.prompt_lr=fast", "optim.prompt_lr is 'fast'; valid is a number."),
    ("--prompt.class_specific=ture", "prompt.class_specific is 'ture'; valid is true or false; did you mean 'true'?"),
    ("--clip.quick_gelu=maybe", "clip.quick_gelu is 'maybe'; valid is true, false or null."),
    ("--runtime.threads=many", "runtime.threads is 'many'; valid is an integer or null."),
    (
        "--clip.precision=bfloat15",
        "clip.precision is 'bfloat15'; valid is float32, bfloat16 or float16; did you mean 'bfloat16'?",
    ),
    (
        "--prompt.position=End",
        "prompt.position is 'End'; valid is end, middle or front; did you mean 'end'?",
    ),
    ("--tracking.tags=3", "tracking.tags is '3'; valid is a list of texts."),
    ("--views.scale=3", "views.scale is '3'; valid is a list of 2 numbers."),
    ("--partition.alpha=abc", "partition.alpha is 'abc'; valid is a number."),
    (
        "--method.assignment=nearst",
        "method.assignment is 'nearst'; valid is nearest, random, shuffled, farthest, same_domain, own, global or "
        "noise; did you mean 'nearest'?",
    ),
    ("--federation={rounds: abc}", "federation.rounds is 'abc'; valid is an integer."),
    (
        "--output=7",
        "output is '7'; valid is a mapping of its settings: dir, name or overwrite.",
    ),
    # what the classes check themselves
    ("--federation.participation=1.5", "federation.participation is 1.5; valid is a number in (0, 1]."),
    ("--partition.alpha=-1", "partition.alpha is -1.0; valid is a finite number above 0."),
    ("--method=CoOp --method.epochs=0", "method.epochs is 0; valid is an integer of at least 1."),
    ("--methods=[]", "methods is an empty list; valid is null or a list of at least one method."),
    # missing values and stray words
    ("--seed", "--seed needs a value; valid is an integer."),
    ("--seed --federation.rounds=3", "--seed needs a value; valid is an integer."),
    ("--partition.alpha", "--partition.alpha needs a value; valid is a number."),
    ("--output", "output has no value; valid is a mapping of its settings: dir, name or overwrite."),
    ("--config", "--config needs a value; valid is a YAML file."),
    ("--config=", "--config needs a value; valid is a YAML file."),
    ("fast", "'fast' is not expected; settings are written --key=value."),
    (
        "federation.rounds=3",
        "'federation.rounds=3' is not expected; settings are written --key=value; "
        "did you mean '--federation.rounds=3'?",
    ),
    # help
    ("--federation.rounds=x --help", "federation.rounds is 'x'; valid is an integer."),
    ("--print_config=all", 'Invalid option "all" for --print_config.'),
]


@pytest.mark.parametrize(("args", "sentence"), COMMAND_LINE, ids=[args for args, _ in COMMAND_LINE])
def test_command_line(args, sentence, capsys):
    args = [args] if "{" in args else args.split()
    assert error_of(["fit", *args], capsys) == sentence


@pytest.mark.parametrize(
    ("arg", "parts"),
    [
        ("--partition=Dirichelt", ["partition is 'Dirichelt'", "Pathological", "IID", "did you mean 'Dirichlet'?"]),
        ("--partition=dirichlet", ["partition is 'dirichlet'", "did you mean 'Dirichlet'?"]),
        ("--partition.class_path=Dirichelt", ["partition is 'Dirichelt'", "did you mean 'Dirichlet'?"]),
        ("--partition=Digits", ["partition is 'Digits'", "Dirichlet", "Pathological", "IID"]),
        ("--partition=fedmoe.data.Digits", ["'fedmoe.data.Digits', which is no Partition", "Dirichlet"]),
        ("--partition=fedmoe.data.Partition", ["'fedmoe.data.Partition', which is no Partition to build", "Dirichlet"]),
        ("--partition=fedmoe.data.Nothing", ["'fedmoe.data.Nothing', which is not found", "Dirichlet"]),
        ("--method=fedmoe.methods.Method", ["'fedmoe.methods.Method', which is no Method to build", "PFedMoAP"]),
        ("--method=TowerMethod", ["method is 'TowerMethod'; valid is", "FedVPT"]),
        ("--method=fedmoe.methods.towers.TowerMethod", ["TowerMethod', which is no Method to build", "FedVPT"]),
        ("--data=DomainFolders", ["data is 'DomainFolders'; valid is", "PACS"]),
        ("--method=nowhere.Method", ["method is 'nowhere.Method', which is not found", "PFedMoAP", "CoOp"]),
        ("--method.help=PFedMoPA", ["method is 'PFedMoPA'", "did you mean 'PFedMoAP'?"]),
        ("--method=PFedMoPA", ["method is 'PFedMoPA'", "did you mean 'PFedMoAP'?"]),
        ("--data=Didgits", ["data is 'Didgits'", "did you mean 'Digits'?"]),
        ("--methods=[CoOp,PromtFL]", ["methods[1] is 'PromtFL'", "did you mean 'PromptFL'?"]),
        ("--partition=null", ["partition is null", "Dirichlet"]),
        ("--qqq=3", ["--qqq is not a known option", "seed", "federation", "methods"]),
    ],
)
def test_classes(arg, parts, capsys):
    sentence = error_of(["fit", arg], capsys)
    assert [part for part in parts if part not in sentence] == []


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (
            [],
            [
                "No command",
                "fit, search, audit, evaluate, predict, export, import, report, compare, partition, features, client, ",
            ],
        ),
        (
            ["fti"],
            [
                "'fti' is not a command",
                "fit, search, audit, evaluate, predict, export, import, report, compare, partition, features, client, "
                "engine, data, ",
                "did you mean 'fit'?",
            ],
        ),
        (["--seed=3", "fit"], ["--seed=3 stands before the command"]),
        (["evaluate"], ["evaluate needs run (a run folder)"]),
        (["report"], ["report needs run"]),
        (["evaluate", "a", "b"], ["'b' is not expected"]),
        (["evaluate", "a", "--seed=3"], ["--seed is not a known option"]),
        (["evaluate", "nowhere"], ["nowhere is not a run folder"]),
        (["partition", "--pictur=a.png"], ["--pictur is not a known option", "'--picture'"]),
        (["partition", "--partition.min_size=ten"], ["partition.min_size is 'ten'; valid is an integer."]),
        (["fit", "--config=nowhere/a.yaml"], ["nowhere/a.yaml does not exist; there is no folder nowhere."]),
        (["fit", "--config=."], [". cannot be read (Is a directory)"]),
        (["fit", "--config=zzzz.yaml"], ["zzzz.yaml does not exist; valid is a YAML file."]),
        (["fit", "--config", "quikstart.yaml"], ["quikstart.yaml does not exist; did you mean 'quickstart.yaml'?"]),
    ],
)
def test_commands_and_paths(args, parts, capsys):
    sentence = error_of(args, capsys, {"quickstart.yaml": "seed: 0"})
    assert [part for part in parts if part not in sentence] == []


def test_a_constructor_that_refuses_its_settings(capsys):
    sentence = error_of(["fit", f"--partition={path_of(_Refusing)}", "--partition.size=5"], capsys)
    assert sentence == "partition cannot be built: _Refusing(size=5) says: size 5 is not even."


def test_a_setting_without_default(capsys):
    sentence = error_of(["fit", f"--partition={path_of(_Folder)}"], capsys)
    assert sentence == "partition.root is not set; _Folder needs text."


def test_a_bug_is_no_mistake_of_the_user():
    with pytest.raises(KeyError, match="a real bug"):
        cli.main(["fit", f"--partition={path_of(_Buggy)}"])
    with pytest.raises(ValueError, match="a real bug") as raised:  # a list: jsonargparse makes it a ValueError
        cli.main(["fit", f"--methods=[{path_of(_BuggyMethod)}]"])
    assert not isinstance(raised.value, UserError)


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch, capsys):
    Path("halfway.py").write_text("import no_such_package\n")
    Path("broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sentence = error_of(["fit", "--method=halfway.Mine"], capsys)
    assert sentence == "halfway.Mine cannot be imported: No module named 'no_such_package'."
    with pytest.raises(Exception, match="ZeroDivisionError"):
        cli.main(["fit", "--method=broken.Mine"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["fit", "--federation.ronds=3"],
            "--federation.ronds is not a known option; did you mean '--federation.rounds'?",
        ),
        (
            ["partition", "--clip.precision=bfloat15"],
            "clip.precision is 'bfloat15'; valid is float32, bfloat16 or float16; did you mean 'bfloat16'?",
        ),
    ],
)
def test_as_a_program(args, sentence, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "fedmoe.cli", *args]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"Error: {sentence}\n")
