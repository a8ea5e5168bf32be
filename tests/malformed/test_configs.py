"""Settings that cannot be used: every field of every group, every class and its arguments, and YAML files."""

from __future__ import annotations

import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from fedmoe.cli.settings import GROUPS
from fedmoe.cli.values import known_subclasses, settings_of
from fedmoe.data import DataSet, Partition
from fedmoe.methods import Method
from malformed.helpers import Case, Refused, each

HUGE = 10**30
# Below and above what each number may be; empty where every number of its kind is valid.
OUTSIDE: dict[str, list[float]] = {
    "prompt.length": [0, -3],
    "prompt.std": [-0.1],
    "runtime.text_cache_mib": [0, -1],
    "federation.clients": [0, -1],
    "federation.participation": [0, -0.5, 1.01],
    "federation.rounds": [-1],
    "federation.validation": [-0.1, 1.0],
    "federation.evaluate_clients": [0, 1, -5],
    "federation.local_epochs": [0],
    "federation.batch_size": [0],
    "federation.evaluate_every": [0],
    "federation.late_clients": [-1, 10],
    "federation.retries": [0],
    "optim.prompt_lr": [-1e-9],
    "optim.gating_lr": [-1],
    "optim.momentum": [-0.1, 1],
    "optim.weight_decay": [-1],
    "privacy.epsilon": [0, -1],
    "privacy.delta": [0, 1],
    "privacy.clip": [0, -1],
    "features.batch_size": [0],
    "features.workers": [-1],
    "features.chunk": [0],
    "views.count": [0],
    "views.seed": [],
    "runtime.threads": [0],
    "runtime.devices": [0, 2],
    "runtime.score_cache_mib": [-1],
    "runtime.cohort_batch": [0, -1],
    "engine.actors": [0, -1],
    "engine.gpus": [-0.5],
    "engine.timeout": [0, -1],
    "engine.connect": [0],
    "tracking.detail_every": [0],
    "tracking.timeout": [0, -1],
}


def members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def settings_of_groups() -> dict[str, Any]:
    """The type of every setting of every group, by its key."""
    hints = {name: get_type_hints(group) for name, group in GROUPS.items()}
    return {f"{name}.{f.name}": hints[name][f.name] for name, group in GROUPS.items() for f in fields(group)}


def in_yaml(key: str, value: str) -> str:
    """A YAML file of one setting, its key written out."""
    *above, leaf = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(above)]
    return "\n".join([*lines, f"{'  ' * len(above)}{leaf}: {value}"]) + "\n"


def in_file(key: str, value: str, *words: str, name: str = "") -> Case:
    """The setting in a file; the sentence must name file, line and key."""
    text = in_yaml(key, value)
    where = f"a.yaml, line {text.count(chr(10))}: {key}"
    return Case(name or f"{key}: {value}", ["fit", "--config=a.yaml"], [where, *words], {"a.yaml": text})


def wrong_types() -> list[Case]:
    cases = []
    for key, hint in {"seed": int, **settings_of_groups()}.items():
        cases.append(in_file(key, "{a: 1}", "is {'a': 1}; valid is "))
        if str not in members(hint):
            cases.append(Case(f"{key}=zzz", ["fit", f"--{key}=zzz"], [f"{key} is 'zzz'; valid is "]))
    return cases


def wrong_numbers() -> list[Case]:
    cases = []
    for key, hint in {"seed": int, **settings_of_groups()}.items():
        if float in members(hint) or get_args(hint) == (float, float):
            pair = "[0.1, {}]" if get_args(hint) == (float, float) else "{}"
            cases += [in_file(key, pair.format(value), "; valid is ") for value in (".nan", ".inf", "-.inf")]
            cases.append(Case(f"{key}=nan", ["fit", f"--{key}={pair.format('nan')}"], [f"{key} is ", "valid is "]))
        elif int in members(hint):
            cases.append(in_file(key, str(HUGE), f"is {HUGE}; valid is ", "64 bits"))
            cases.append(Case(f"{key}=-{HUGE}", ["fit", f"--{key}=-{HUGE}"], [f"{key} is '-1000", "64 bits"]))
    for key, values in OUTSIDE.items():
        cases += [Case(f"{key}={v}", ["fit", f"--{key}={v}"], [f"{key} is {v}", "; valid is "]) for v in values]
    return cases


def wrong_words() -> list[Case]:
    cases = []
    for key, hint in settings_of_groups().items():
        if get_origin(hint) is Literal:
            for word in get_args(hint):
                near = word[:-1] + "_" if len(word) > 3 else word + "_"
                cases.append(in_file(key, near, f"is '{near}'; valid is ", f"did you mean '{word}'?"))
            cases.append(in_file(key, "zzzz", "is 'zzzz'; valid is ", *get_args(hint)))
            cases.append(in_file(key, "3", "is 3; valid is ", *get_args(hint)))
    return cases


def unknown_keys() -> list[Case]:
    """A letter too many in the first setting of each group, and keys far from any."""
    cases = [
        Case("seeed", ["fit", "--seeed=3"], ["--seeed is not a known option", "did you mean '--seed'?"]),
        Case("zzz", ["fit", "--config=a.yaml"], ["a.yaml, line 1: zzz is not a known setting"], {"a.yaml": "zzz: 1"}),
    ]
    for name, group in GROUPS.items():
        first = fields(group)[0].name
        typo = first[:2] + first[1:]
        key, right = f"{name}.{typo}", f"{name}.{first}"
        words = ["is not a known ", "did you mean '", right]
        cases.append(Case(key, ["fit", f"--{key}=3"], [f"--{key}", *words]))
        cases.append(
            Case(
                f"{key}:", ["fit", "--config=a.yaml"], [f"a.yaml, line 2: {key}", *words], {"a.yaml": in_yaml(key, "3")}
            )
        )
        cases.append(Case(f"{name}.qqqqq", ["fit", f"--{name}.qqqqq=3"], [f"--{name}.qqqqq is not a known option"]))
        cases.append(in_file(name, "[1]", "is [1]; valid is a mapping of its settings"))
        cases.append(in_file(name, "{class_path: os.system}", name=f"{name}: os.system"))
    return cases


PATHS = {  # why nothing is built from it
    "no.such.module.Thing": "which is not found",
    "fedmoe.methods.NoSuchMethod": "which is not found",
    "os.system": "to build",
    "subprocess.Popen": "to build",
    "builtins.eval": "to build",
    "builtins.exec": "to build",
    "builtins.object": "to build",
    "pathlib.Path": "to build",
    "torch.load": "to build",
    "fedmoe.cli.main": "to build",
    "fedmoe.methods": "to build",
    "fedmoe.io.write_bytes_atomic": "to build",
    "fedmoe.data.base.DataSet": "to build",
    "fedmoe.data.partition.Partition": "to build",
    "fedmoe.protocol.method.Method.label": "to build",
    "..": "which is not found",
    "os.": "which is not found",
    "os..system": "which is not found",
    "a b.c": "which is not found",
    "../mine.Mine": "which is not found",
    "fed\0moe.x": "which is not found",
    "é.ü": "which is not found",
}


def wrong_paths() -> list[Case]:
    cases = []
    for key in ("method", "data", "partition"):
        for path, why in PATHS.items():
            text = f"{key}:\n  class_path: {path!r}\n  init_args: {{}}\n".replace("'fed\\x00moe.x'", '"fed\\0moe.x"')
            words = [f"a.yaml, line 2: {key} is {path!r}", why, "valid is "]
            cases.append(Case(f"{key} {path!r}", ["fit", "--config=a.yaml"], words, {"a.yaml": text}))
    canary = "{class_path: os.system, init_args: {command: touch canary}}"
    for key in ("method", "data", "partition"):
        cases.append(in_file(key, canary, "is 'os.system', which is no", name=f"{key} touches"))
    cases += [
        Case("method=os.system", ["fit", "--method=os.system", "--method.command=touch canary"], ["os.system"]),
        Case("methods=[Popen]", ["fit", "--methods=[subprocess.Popen]"], ["methods[0] is 'subprocess.Popen'"]),
        Case("methods+=", ["fit", "--methods+=os.system"], ["methods[0] is 'os.system'"]),
        Case("class_path 3", ["fit", "--config=a.yaml"], ["line 2: data is 3"], {"a.yaml": "data:\n  class_path: 3"}),
    ]
    return cases


def arguments() -> list[tuple[str, type, str, Any]]:
    """Key, class, name and type of every argument of every method, data set and partition.

    What several classes share is named once, with the first of them.
    """
    found: dict[tuple[str, str], tuple[str, type, str, Any]] = {}
    for key, base in {"method": Method, "data": DataSet, "partition": Partition}.items():
        for owner in known_subclasses(base):
            if not owner.__module__.startswith("fedmoe."):
                continue  # another test's
            for name, setting in settings_of(owner).items():
                found.setdefault((key, name), (key, owner, name, setting.hint))
    return list(found.values())


def wrong_arguments() -> list[Case]:
    cases = []
    for key, owner, name, hint in arguments():
        values = {"{a: 1}": "is {'a': 1}; valid is "}
        if float in members(hint):
            values |= {".nan": "is nan; valid is a finite number", "-.inf": "is -inf; valid is a finite number"}
        elif int in members(hint):
            values[str(HUGE)] = f"is {HUGE}; valid is an integer of at most 64 bits"
        elif get_origin(hint) is Literal:
            values["zzz"] = "is 'zzz'; valid is "
        for value, words in values.items():
            *groups, leaf = name.split(".")
            above = [f"{key}:", f"  class_path: {owner.__name__}", "  init_args:"]
            above += [f"{'  ' * (depth + 2)}{group}:" for depth, group in enumerate(groups)]
            text = "\n".join([*above, f"{'  ' * (len(groups) + 2)}{leaf}: {value}"]) + "\n"
            where = f"a.yaml, line {len(above) + 1}: {key}.{name} "
            title = f"{owner.__name__}.{name}: {value}"
            cases.append(Case(title, ["fit", "--config=a.yaml"], [where + words], {"a.yaml": text}))
    return cases


def class_settings() -> list[Case]:
    """Numbers that a class refuses itself."""
    table = {
        "method=CoOp": ["epochs=0"],
        "method=FedProx": ["mu=-1"],
        "method=FedPer": ["personal_vectors=-1"],
        "method=FedAMP": ["sigma=0", "alpha=0", "lmbda=-1"],
        "method=FedPGP": ["rank=0", "mu=-1", "temperature=0", "std=-1", "template=none"],
        "method=PromptFLFT": ["epochs=0"],
        "method=PFedMoAP": ["num_experts=-1"],
        "partition=Dirichlet": ["alpha=0", "alpha=-1", "min_size=0"],
        "partition=DomainDirichlet": ["alpha=0", "clients_per_domain=0", "min_size=0"],
        "data=Digits": ["test_fraction=0", "test_fraction=1", "size=7", "shots=0"],
        "data=ImageFolder": ["test_fraction=1.5", "template=none"],
        "data=HuggingFace": ["test_fraction=-1", "template=none"],
        "data=DomainNet": ["test_fraction=0"],
    }
    cases = []
    for choice, settings in table.items():
        key = choice.partition("=")[0]
        for setting in settings:
            name, _, value = setting.partition("=")
            words = [f"{key}.{name} is ", value, "; valid is "]
            cases.append(Case(f"{choice} {setting}", ["fit", f"--{choice}", f"--{key}.{setting}"], words))
    for name in ("classes", "train", "test"):
        text = f"data:\n  class_path: Digits\n  init_args:\n    subset:\n      {name}: 0\n"
        words = [f"data.subset.{name} is 0; valid is "]
        cases.append(Case(f"subset.{name}=0", ["fit", "--config=a.yaml"], words, {"a.yaml": text}))
    return cases


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(i + 1)}: &{chr(i + 1)} [{', '.join([f'*{chr(i)}'] * 9)}]\n" for i in range(ord("a"), ord("m"))
)
YAML: dict[str, tuple[str | bytes, list[str]]] = {
    "tab": ("seed: 1\n\tclip: 3", ["line 2", "not valid YAML"]),
    "unclosed mapping": ("clip: {", ["not valid YAML"]),
    "unclosed text": ("clip: 'RN50", ["not valid YAML"]),
    "unknown alias": ("seed: *a", ["line 1", "not valid YAML", "undefined alias"]),
    "two documents": ("seed: 1\n---\nseed: 2\n", ["line 2", "not valid YAML"]),
    "unknown tag": ("seed: !mine 3", ["line 1", "not valid YAML"]),
    "python tag": ("seed: !!python/object/apply:os.system ['touch canary']", ["line 1", "not valid YAML"]),
    "python name": ("seed: !!python/name:os.system", ["line 1", "not valid YAML"]),
    "python module": ("seed: !!python/module:antigravity", ["line 1", "not valid YAML"]),
    "python new": ("seed: !!python/object/new:subprocess.Popen [[touch, canary]]", ["line 1", "not valid YAML"]),
    "doubled key": ("seed: 1\nclip: {precision: float32, precision: float16}", ["precision is given twice"]),
    "doubled group": ("clip: {}\nseed: 0\nclip: {}", ["line 3", "clip is given twice, first in line 1"]),
    "list as key": ("? [1]\n: 2", ["line 1", "not valid YAML"]),
    "mapping as key": ("? {a: 1}\n: 2", ["line 1", "not valid YAML"]),
    "number as key": ("3: 2", ["has the key 3"]),
    "null as key": ("~: 2", ["has the key null"]),
    "bool of no bool": ("seed: !!bool maybe", ["not valid YAML"]),
    "int of nothing": ("seed: !!int ''", ["not valid YAML"]),
    "int of words": ("seed: !!int words", ["not valid YAML"]),
    "float of nothing": ("seed: !!float ''", ["not valid YAML"]),
    "date of words": ("seed: !!timestamp words", ["not valid YAML"]),
    "binary of words": ("seed: !!binary '***'", ["seed"]),
    "merge of a number": ("<<: 3", ["line 1", "not valid YAML"]),
    "sexagesimal": ("seed: 190:20:30:99999999999999999999", ["seed is "]),
    "digits of decimals": ("seed: " + "9" * 5000, ["not valid YAML"]),
    "digits of hexadecimals": ("seed: 0x" + "f" * 5000, ["line 1: seed is ", "valid is an integer"]),
    "billion laughs": (BOMB + "seed: *m", ["not valid YAML", "aliases"]),
    "billion laughs in a class": (BOMB + "method: {class_path: CoOp, init_args: {epochs: *m}}", ["aliases"]),
    "alias of itself": ("seed: &a [*a]", ["not valid YAML", "aliases"]),
    "group of itself": ("federation: &a {rounds: *a}", ["not valid YAML", "aliases"]),
    "deep lists": ("seed: " + "[" * 20_000, ["not valid YAML"]),
    "deep mappings": ("seed: " + "{a: " * 20_000, ["not valid YAML"]),
    "deep sequences": ("".join("  " * 0 + "- " for _ in range(5000)) + "x", ["not valid YAML"]),
    "half a surrogate": ('output: {name: "\\ud800"}', ["output.name is '\\ud800'"]),
    "zero in a path": ('output: {name: "a\\0b"}', ["output.name is 'a\\x00b'"]),
    "half a surrogate as key": ('"\\ud800": 3', ["a.yaml"]),
    "escape sequence as key": ('"\\e[31m": 3', ["a.yaml"]),
    "newline in a word": ('clip: {precision: "float32\\n\\nError: x"}', ["clip.precision is 'float32\\n"]),
    "UTF-16": ("seed: 1\n".encode("utf-16"), ["a.yaml"]),
    "latin-1": (b"output: {name: caf\xe9}", ["byte 19 is not UTF-8"]),
    "binary": (bytes(range(256)) * 16, ["a.yaml"]),
    "zeros": (b"\0" * 4096, ["a.yaml", "not valid YAML"]),
    "a picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, ["a.yaml"]),
    "an archive": (b"PK\x03\x04" + b"\0" * 64, ["a.yaml"]),
    "nothing": ("", ["a.yaml is empty"]),
    "blanks": ("\n\n   \n", ["a.yaml is empty"]),
    "null": ("null", ["a.yaml is empty"]),
    "a number": ("3", ["a.yaml holds 3"]),
    "a text": ("seed", ["a.yaml holds 'seed'"]),
    "a list": ("- seed: 3", ["a.yaml holds [{'seed': 3}]"]),
    "a set": ("!!set {seed}", ["a.yaml"]),
    "pairs": ("!!pairs [seed: 3]", ["a.yaml holds"]),
    "a long word": ("seed: " + "x" * 100_000, ["line 1: seed is 'xxx"]),
    "a long key": ("x" * 1000 + ": 3", ["a.yaml, line 1"]),
}


def wrong_yaml() -> list[Case]:
    return [
        Case(name, ["fit", "--config=a.yaml"], ["a.yaml", *words], {"a.yaml": content})
        for name, (content, words) in YAML.items()
    ]


def wrong_files() -> list[Case]:
    here: dict[str, str | bytes] = {"there/a.yaml": "seed: 1", "settings.yaml": "seed: 1"}
    cases = [
        Case(f"{command} without file", [*words, "--config=nowhere.yaml"], ["nowhere.yaml does not exist"])
        for command, words in COMMANDS.items()
    ]
    cases += [
        Case(f"{command} seed", [*words, "--seed=x"], ["seed is 'x'; valid is an integer."])
        for command, words in COMMANDS.items()
    ]
    cases += [
        Case(f"{command} unknown", [*words, "--federaton.rounds=1"], ["did you mean '--federation.rounds'?"])
        for command, words in COMMANDS.items()
    ]
    return [
        *cases,
        Case("near file", ["fit", "--config=setings.yaml"], ["did you mean 'settings.yaml'?"], here),
        Case("folder", ["fit", "--config=there"], ["there cannot be read (Is a directory)"], here),
        Case("no folder", ["fit", "--config=nowhere/a.yaml"], ["there is no folder nowhere"], here),
        Case("file as folder", ["fit", "--config=there/a.yaml/b.yaml"], ["there/a.yaml/b.yaml"], here),
        Case("long name", ["fit", "--config=" + "x" * 300], ["cannot be read (File name too long)"]),
        Case("name of a zero", ["fit", "--config=a\0b.yaml"], ["a"]),
        Case("inline text", ["fit", "--config={seed: x}"], ["seed is 'x'"]),
        Case("inline bomb", ["fit", "--config={seed: &a [*a]}"], ["does not exist; valid is a YAML file."]),
        Case("inline brackets", ["fit", "--config=" + "[" * 5000], ["cannot be read (File name too long)"]),
        Case("inline class of brackets", ["fit", "--method=" + "[" * 20_000], ["method is '[["]),
        Case("inline list of brackets", ["fit", "--methods=" + "[" * 20_000], ["methods is '[["]),
        Case("inline number of brackets", ["fit", "--seed=" + "[" * 20_000], ["seed is '[["]),
        Case("inline number of tags", ["fit", "--seed=!!bool x"], ["seed is '!!bool x'"]),
        Case("inline group of tags", ["fit", "--clip=!!bool x"], ["clip is '!!bool x'"]),
        Case("inline class of tags", ["fit", "--method=!!int ''"], ["method is "]),
        Case("no command", [], ["No command is given"]),
        Case("no such command", ["fitt"], ["'fitt' is not a command", "did you mean 'fit'?"]),
        Case("no such action", ["features", "fil"], ["action is 'fil'", "did you mean 'fill'?"]),
        Case("no action", ["features"], ["features needs action"]),
        Case("no such check", ["data", "chek"], ["action is 'chek'", "check"]),
        Case("resume nothing", ["fit", "--resume=nowhere"], ["nowhere does not exist"]),
        Case("resume no run", ["fit", "--resume=there"], ["there is neither"], here),
        Case("join", ["evaluate", "there", "--join_rounds=x"], ["join_rounds is 'x'"], here),
        Case("classes", ["evaluate", "there", "--classes=x"], ["classes is 'x'"], here),
        Case("keys", ["features", "clear"], ["needs at least one key"]),
        Case("no such key", ["features", "clear", "--keys=[ab]"], ["begins with 'ab'"]),
        Case("keys of numbers", ["features", "inspect", "--keys=[1]"], ["keys is "]),
    ]


COMMANDS = {
    "fit": ["fit"],
    "partition": ["partition"],
    "features fill": ["features", "fill"],
    "features list": ["features", "list"],
    "features inspect": ["features", "inspect"],
    "features clear": ["features", "clear"],
    "data check": ["data", "check"],
}
KINDS = {
    "types": wrong_types(),
    "numbers": wrong_numbers(),
    "words": wrong_words(),
    "unknown keys": unknown_keys(),
    "class paths": wrong_paths(),
    "arguments of classes": wrong_arguments(),
    "settings of classes": class_settings(),
    "YAML": wrong_yaml(),
    "files and commands": wrong_files(),
}


def test_there_are_hundreds_of_cases() -> None:
    counts = {kind: len(cases) for kind, cases in KINDS.items()}
    assert sum(counts.values()) >= 500, counts
    assert min(counts.values()) >= 20, counts


def test_every_number_has_a_range_here() -> None:
    numbers = {key for key, hint in settings_of_groups().items() if {int, float} & set(members(hint))}
    assert numbers == OUTSIDE.keys()


@pytest.mark.usefixtures("bounded")
@each([case for cases in KINDS.values() for case in cases])
def test_a_setting_is_refused(case: Case, refused: Refused) -> None:
    case.check(refused)
