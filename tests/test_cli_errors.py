"""Every mistake on the command line or in a YAML file is answered by one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jsonargparse
import pytest

from fedmoe import cli
from fedmoe.attacks import Attack
from fedmoe.cli.settings import GROUPS, as_plain
from fedmoe.cli.values import REQUIRED, known_subclasses, settings_of
from fedmoe.data import IID, DataSet, Dirichlet, Partition
from fedmoe.defences import Aggregation, Screening, Serving
from fedmoe.errors import UserError
from fedmoe.methods import Method, PromptFL

ROOT = Path(__file__).parent.parent

# Private names: reached by their path, never offered as a valid short name to other tests.


class _Softer(Dirichlet):
    """Shares alpha and min_size with its base."""


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


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(args, capsys, files=None) -> str:
    """The one line on stderr of a command that fails on the user's input."""
    for name, text in (files or {}).items():
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    code = cli.main(args)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "usage" not in err
    assert "jsonargparse" not in err
    return err.removeprefix("Error: ").rstrip("\n")


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


# A file a.yaml, and the sentence behind "a.yaml".
FILES = [
    (
        "seed: 1\nfederation:\n  ronds: 3",
        ", line 3: federation.ronds is not a known setting; did you mean 'federation.rounds'?",
    ),
    ("federation.ronds: 3", ", line 1: federation.ronds is not a known setting; did you mean 'federation.rounds'?"),
    ("sede: 3", ", line 1: sede is not a known setting; did you mean 'seed'?"),
    (
        "\n\noutput:\n  # here\n  qqq: 3",
        ", line 5: output.qqq is not a known setting; valid is dir, name or overwrite.",
    ),
    ("config: b.yaml", ", line 1: config belongs on the command line; files do not include each other."),
    ("1: 3", " has the key 1; valid is the name of a setting."),
    (
        "partition:\n  class_path: Dirichlet\n  init_args:\n    alhpa: 3",
        ", line 4: partition.alhpa is not a setting of Dirichlet; did you mean 'partition.alpha'?",
    ),
    (
        "partition:\n  class_path: Dirichlet\n  alpha: 3",
        ", line 3: partition.alpha is not known beside class_path; valid is init_args; did you mean "
        "'partition.init_args.alpha'?",
    ),
    (
        "partition: {class_path: Dirichlet, init_arg: {alpha: 3}}",
        ", line 1: partition.init_arg is not known beside class_path; valid is init_args; did you mean 'init_args'?",
    ),
    ("partition: {init_args: 3}", ", line 1: partition.init_args is 3; valid is a mapping of settings."),
    (
        "methods:\n- PromptFL\n- class_path: FedProx\n  init_args:\n    muh: 3",
        ", line 5: methods[1].muh is not a setting of FedProx; did you mean 'methods[1].mu'?",
    ),
    (
        "methods:\n- class_path: CoOp\n  init_args: {epochs: x}",
        ", line 3: methods[0].epochs is 'x'; valid is an integer.",
    ),
    ("federation:\n  rounds: abc", ", line 2: federation.rounds is 'abc'; valid is an integer."),
    ("federation:\n  rounds: true", ", line 2: federation.rounds is true; valid is an integer."),
    ("federation:\n  rounds:\n  clients: 2", ", line 2: federation.rounds is null; valid is an integer."),
    ("clip: {architecture: null}", ", line 1: clip.architecture is null; valid is text."),
    ("output:\n  name: 2024", ", line 2: output.name is 2024; valid is text in quotes or null."),
    ("seed: [1, 2]", ", line 1: seed is [1, 2]; valid is an integer."),
    ("seed: 1\noutput:", ", line 2: output is null; valid is a mapping of its settings: dir, name or overwrite."),
    ("seed: 1\nseed: 2", ", line 2, is not valid YAML: seed is given twice, first in line 1."),
    (
        "federation:\n  rounds: 1\n  clients: 2\n  rounds: 3",
        ", line 4, is not valid YAML: rounds is given twice, first in line 2.",
    ),
    ("- seed", " holds ['seed']; valid is a YAML mapping of settings, such as 'seed: 0'."),
    ("seed", " holds 'seed'; valid is a YAML mapping of settings, such as 'seed: 0'."),
    ("# nothing\n", " is empty; valid is a YAML mapping of settings, such as 'seed: 0'."),
    ("seed: 1\n rounds: 2", ", line 2, is not valid YAML: mapping values are not allowed here."),
    ("seed: 1\nclip: [", ", line 2, is not valid YAML: expected the node content, but found '<stream end>'."),
    (b"seed: \xff\xfe", " is not text (byte 7 is not UTF-8); valid is a YAML file."),
]


@pytest.mark.parametrize(("text", "sentence"), FILES, ids=[repr(text) for text, _ in FILES])
def test_file(text, sentence, capsys):
    assert error_of(["fit", "--config=a.yaml"], capsys, {"a.yaml": text}) == f"a.yaml{sentence}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: !!python/object:os.system 3", ["a.yaml", "line 1", "not valid YAML"]),
        ("? [1, 2]\n: 3", ["a.yaml", "line 1", "not valid YAML"]),
        (b"seed: \x00", ["a.yaml", "not valid YAML", "special characters are not allowed"]),
        ("partition: null", ["a.yaml, line 1: partition is null", "Dirichlet", "Pathological", "IID"]),
        ("partition: [IID]", ["a.yaml, line 1: partition is ['IID']", "Dirichlet", "Pathological", "IID"]),
        ("method: {class_path: 3}", ["a.yaml, line 1: method is 3", "PFedMoAP", "PromptFL"]),
        ("methods: CoOp", ["a.yaml, line 1: methods is 'CoOp'", "a list of", "FedProx"]),
        (
            "methods:\n- CoOp\n- class_path: FedPrx",
            ["a.yaml, line 3: methods[1] is 'FedPrx'", "did you mean 'FedProx'?"],
        ),
        (
            "methods:\n- class_path: CoOp\n- FedPrx",
            ["a.yaml, line 1: methods[1] is 'FedPrx'", "did you mean 'FedProx'?"],
        ),
    ],
)
def test_file_parts(text, parts, capsys):
    sentence = error_of(["fit", "--config=a.yaml"], capsys, {"a.yaml": text})
    assert [part for part in parts if part not in sentence] == []


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


def test_the_file_that_is_wrong_is_named(capsys):
    files = {"a.yaml": "federation: b.yaml", "b.yaml": "clients: 3\nronds: 2", "c.yaml": "seed: 1\nseet: 2"}
    assert error_of(["fit", "--config=a.yaml"], capsys, files).startswith("b.yaml, line 2: federation.ronds is not")
    assert error_of(["fit", "--federation=b.yaml"], capsys).startswith("b.yaml, line 2: federation.ronds is not")
    files["b.yaml"] = "clients: 3"
    args = ["fit", "--config=a.yaml", "--config=c.yaml", "--federation.ronds=3"]
    assert error_of(args, capsys, files).startswith("c.yaml, line 2: seet is not a known setting")
    files["c.yaml"] = "seed: 1"
    assert error_of(args, capsys, files).startswith("--federation.ronds is not a known option")


def test_a_run_folder_with_a_spoilt_configuration(capsys):
    Path("run").mkdir()
    sentence = error_of(["evaluate", "run"], capsys, {"run/config.yaml": "federation:\n  rounds: many"})
    assert sentence == "run/config.yaml, line 2: federation.rounds is 'many'; valid is an integer."


def test_a_constructor_that_refuses_its_settings(capsys):
    sentence = error_of(["fit", f"--partition={path_of(_Refusing)}", "--partition.size=5"], capsys)
    assert sentence == "partition cannot be built: _Refusing(size=5) says: size 5 is not even."


def test_a_setting_without_default(capsys):
    sentence = error_of(["fit", f"--partition={path_of(_Folder)}"], capsys)
    assert sentence == "partition.root is not set; _Folder needs text."


def test_a_user_error_is_found_inside_a_list(capsys):
    files = {"a.yaml": "methods:\n- CoOp\n- {class_path: FedProx, init_args: {mu: -1}}\n"}
    assert error_of(["fit", "--config=a.yaml"], capsys, files) == "method.mu is -1.0; valid is a number of at least 0."


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


def parsed(*args: str, **files: str) -> jsonargparse.Namespace:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    return cli.experiment_parser().parse_args(list(args))


def test_numbers_in_scientific_notation():
    assert parsed("--optim.prompt_lr=1e-3").optim.prompt_lr == 0.001
    assert parsed("--config=a.yaml", a="optim: {prompt_lr: 1e-3}").optim.prompt_lr == 0.001
    assert parsed("--partition.alpha=2E2").partition.init_args.alpha == 200.0


def test_a_file_of_settings_may_be_a_pipe():
    """As in ``--config <(command)``: it can be read only once."""
    reading, writing = os.pipe()
    os.write(writing, b"federation: {rounds: 4}\npartition: IID\n")
    os.close(writing)
    settings = parsed(f"--config=/dev/fd/{reading}", "--federation.clients=3")
    os.close(reading)
    assert (settings.federation.rounds, settings.federation.clients) == (4, 3)
    assert settings.partition.class_path == "fedmoe.data.IID"


def test_null_for_a_setting_within_a_group_of_a_class():
    assert parsed("--data=Digits", "--data.subset.classes=null").data.init_args.subset.classes is None


def test_a_class_without_settings_is_written_alike_wherever_it_is_chosen():
    alone, listed = parsed("--method=PromptFL"), parsed("--methods=[PromptFL]")
    assert as_plain(alone)["method"] == {"class_path": "fedmoe.methods.PromptFL", "init_args": {}}
    assert as_plain(listed, 0)["method"] == as_plain(alone)["method"]


def test_valid_settings_pass():
    settings = parsed(
        "--config=a.yaml",
        "--seed",
        "-3",
        "--config={output: {name: x}}",
        "--output.dir=null",
        "--methods+=CoOp",
        "--methods.epochs=2",
        a="federation.rounds: 4\noutput: {name: 2024-01-02}\npartition: {alpha: 3}\nmethods: [PromptFL]\n",
    )
    assert settings.seed == -3
    assert settings.federation.rounds == 4
    assert settings.output.name == "x"
    assert settings.output.dir == "null"
    assert settings.partition.init_args.alpha == 3.0
    assert settings.methods[1].init_args.epochs == 2


@pytest.mark.parametrize(
    ("args", "note"),
    [
        (
            ["--config=a.yaml", "--partition=IID"],
            "partition is IID now; the settings of Dirichlet (alpha=3.0) no longer apply.",
        ),
        (
            ["--config=a.yaml", "--config=b.yaml"],
            "partition is IID now; the settings of Dirichlet (alpha=3.0) no longer apply.",
        ),
        (
            ["--partition.alpha=3", "--partition=IID"],
            "partition is IID now; the settings of Dirichlet (alpha=3) no longer apply.",
        ),
        (["--partition=IID"], ""),  # nothing was set
        (["--config=a.yaml", "--partition=Dirichlet"], ""),  # the same class
        (["--config=a.yaml", f"--partition={path_of(_Softer)}"], ""),  # alpha is one of its settings too
    ],
)
def test_dropped_settings_are_told(args, note, capsys):
    settings = parsed(*args, a="partition: {class_path: Dirichlet, init_args: {alpha: 3.0}}", b="partition: IID")
    assert capsys.readouterr().err.strip() == note
    kept = settings.partition.get("init_args", {}).get("alpha") == 3.0
    assert kept == (not note and args != ["--partition=IID"])


def test_several_dropped_settings_are_told(capsys):
    text = "method: {class_path: PFedMoAP, init_args: {num_experts: 5, lmbda: 1e-1}}"
    assert parsed("--config=a.yaml", "--method=PromptFL", a=text).method.class_path == "fedmoe.methods.PromptFL"
    told = "method is PromptFL now; the settings of PFedMoAP (num_experts=5, lmbda=1e-1) no longer apply.\n"
    assert capsys.readouterr().err == told


def test_the_reader_refuses_what_jsonargparse_refuses():
    """Each plain option with values of every kind: the same verdict, and the same result, with and without it."""
    ours = cli.experiment_parser()
    plain = ours.jsonargparse
    keys = [
        key
        for key in vars(plain.parse_args(ours.preset).as_flat())
        if not key.endswith("class_path") and key != "config"
    ]
    assert len(keys) > 35

    def verdict(parser, arg):
        try:
            return parser.parse_args([arg] if parser is ours else [*ours.preset, arg]).as_dict()
        except (UserError, jsonargparse.ArgumentError):
            return "refused"

    # null for a class's setting is left out: jsonargparse lets it pass whatever the type is.
    values = ["abc", "3", "0.5", "true", "{a: 1}", "float16"]
    args = [f"--{key}={values[(i + j) % len(values)]}" for i, key in enumerate(keys) for j in (0, 1)]
    assert [arg for arg in args if verdict(ours, arg) != verdict(plain, arg)] == []


def test_the_reader_knows_the_settings_that_jsonargparse_knows():
    """Names and defaults of every group and every class, which the reader takes from the types by itself."""
    known = [
        cls
        for base in (DataSet, Partition, Method, Attack, Aggregation, Screening, Serving)
        for cls in known_subclasses(base)
    ]
    owners = [cls for cls in known if cls.__module__.startswith("fedmoe.")]  # not those of other tests
    assert len(owners) > 20
    for owner in [*owners, *GROUPS.values()]:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(owner)
        theirs = {key: value for key, value in vars(parser.get_defaults().as_flat()).items()}
        ours = {key: None if s.default is REQUIRED else s.default for key, s in settings_of(owner).items()}
        assert ours == theirs, owner


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["fit", "--help"])
    assert left.value.code == 0
    assert "--federation.rounds" in capsys.readouterr().out


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
