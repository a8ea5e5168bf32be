"""Settings as the command line and its files give them: what is taken, what is dropped, and what jsonargparse says."""

from __future__ import annotations

import os

import jsonargparse
import pytest
from cli_helpers import parsed, path_of

from fedmoe import cli
from fedmoe.attacks import Attack
from fedmoe.cli.settings import GROUPS, as_plain
from fedmoe.cli.values import REQUIRED, known_subclasses, settings_of
from fedmoe.data import DataSet, Dirichlet, Partition
from fedmoe.defences import Aggregation, Screening, Serving
from fedmoe.errors import UserError
from fedmoe.methods import Method

pytestmark = pytest.mark.usefixtures("in_empty_folder")


class _Softer(Dirichlet):
    """Shares alpha and min_size with its base."""


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
