"""Every mistake in a YAML file of settings is answered by one sentence that names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import error_of

pytestmark = pytest.mark.usefixtures("in_empty_folder")

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


def test_a_user_error_is_found_inside_a_list(capsys):
    files = {"a.yaml": "methods:\n- CoOp\n- {class_path: FedProx, init_args: {mu: -1}}\n"}
    assert error_of(["fit", "--config=a.yaml"], capsys, files) == "method.mu is -1.0; valid is a number of at least 0."
