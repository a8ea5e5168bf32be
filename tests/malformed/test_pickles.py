"""Pickles that try to run code, or to take all memory and time: in data sets and in CLIP weights.

The payloads are written instruction by instruction, as a hostile file would be; what they would do is make the file
``canary``. Where ``pickle.loads`` runs one, a test shows that it is alive.
"""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from malformed.data_sets import BATCH, KINDS, LIST, batch
from malformed.helpers import Case, Refused, each

SHELL = ("posix", "system", b"Vtouch canary\n")
EXTENSION = 240  # a number that copyreg knows os.system by, while a test lasts


def long_text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def called(module: str, name: str, args: bytes) -> bytes:
    """A call by the instructions GLOBAL and REDUCE; its result is on the stack."""
    return f"c{module}\n{name}\n(".encode() + args + b"tR"


def by_stack(module: str, name: str, args: bytes) -> bytes:
    return long_text(module) + long_text(name) + b"\x93(" + args + b"tR"


WAYS: dict[str, bytes] = {
    "GLOBAL and REDUCE": called(*SHELL),
    "STACK_GLOBAL": by_stack(*SHELL),
    "INST": b"(" + SHELL[2] + b"iposix\nsystem\n",
    "OBJ": b"(cposix\nsystem\n" + SHELL[2] + b"o",
    "NEWOBJ": b"csubprocess\nPopen\n(" + SHELL[2] + b"t\x81",
    "NEWOBJ_EX": b"csubprocess\nPopen\n(" + SHELL[2] + b"t}\x92",
    "EXT1": b"\x82" + bytes([EXTENSION]) + b"(" + SHELL[2] + b"tR",
    "EXT2": b"\x83" + EXTENSION.to_bytes(2, "little") + b"(" + SHELL[2] + b"tR",
    "EXT4": b"\x84" + EXTENSION.to_bytes(4, "little") + b"(" + SHELL[2] + b"tR",
    "PERSID": b"Pcanary\n",
    "BINPERSID": b"Vcanary\nQ",
    "memo": b"cposix\nsystem\np7\n0g7\n(" + SHELL[2] + b"tR",
    "BINGET": b"cposix\nsystem\nq\x070h\x07(" + SHELL[2] + b"tR",
    "LONG_BINGET": b"cposix\nsystem\nr\x07\x00\x00\x000j\x07\x00\x00\x00(" + SHELL[2] + b"tR",
    "DUP": b"cposix\nsystem\n20(" + SHELL[2] + b"tR",
    "POP": called(*SHELL) + b"0]",
    "POP_MARK": b"(" + called(*SHELL) + b"1]",
    "TUPLE1": b"cposix\nsystem\n" + SHELL[2] + b"\x85R",
    "FRAME": b"\x95" + len(called(*SHELL)).to_bytes(8, "little") + called(*SHELL),
    "in a list": b"](" + called(*SHELL) + b"e",
    "in a dictionary": b"}" + b"Vdata\n" + called(*SHELL) + b"s",
    "as a key": b"}" + called(*SHELL) + b"Vdata\ns",
    "in a tuple": b"(" + called(*SHELL) + b"t",
    "in a set": b"\x8f(" + called(*SHELL) + b"\x90",
    "as a state": b"cnumpy\ndtype\n" + called(*SHELL) + b"b",
    "as an argument": b"cnumpy\ndtype\n(" + called(*SHELL) + b"tR",
    "in an array": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
        b"(I1\n(I1\ntcnumpy\ndtype\n(VO8\nI0\nI1\ntRI00\n(l" + called(*SHELL) + b"atb"
    ),
}
ALIVE = [way for way in WAYS if not way.startswith("NEWOBJ") and "PERSID" not in way and not way.startswith("as a st")]

EVAL = b"Vopen('canary', 'w')\n"
CALLS: dict[str, bytes] = {
    "eval": called("builtins", "eval", EVAL),
    "exec": called("builtins", "exec", EVAL),
    "eval of Python 2": called("__builtin__", "eval", EVAL),
    "execfile": called("__builtin__", "execfile", b"Vcanary\n"),
    "open": called("builtins", "open", b"Vcanary\nVw\n"),
    "io.open": called("_io", "open", b"Vcanary\nVw\n"),
    "io.FileIO": called("_io", "FileIO", b"Vcanary\nVw\n"),
    "codecs.open": called("codecs", "open", b"Vcanary\nVw\n"),
    "os.mkdir": called("posix", "mkdir", b"Vcanary\n"),
    "os.mkdir by nt": called("nt", "system", b"Vmkdir canary\n"),
    "os": called("os", "system", b"Vtouch canary\n"),
    "os.popen": called("os", "popen", b"Vtouch canary\n"),
    "subprocess": called("subprocess", "check_call", b"(lVtouch\naVcanary\na"),
    "pty": called("pty", "spawn", b"Vtouch canary\n"),
    "shutil": called("shutil", "rmtree", b"Vdata\n"),
    "unlink": called("posix", "unlink", b"Va.yaml\n"),
    "pathlib": called("pathlib", "PosixPath.touch", b"Vcanary\n"),
    "a dotted name": by_stack("os", "path.os.system", b"Vtouch canary\n"),
    "getattr": b"cbuiltins\ngetattr\n(cos\nenviron\nVclear\ntR(tR",
    "apply": called("builtins", "apply", b"cposix\nsystem\n(Vtouch canary\nt"),
    "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cposix\nsystem\n(lVtouch canary\natRtR",
    "partial": b"cfunctools\npartial\n(cposix\nsystem\nVtouch canary\ntR(tR",
    "methodcaller": called("operator", "methodcaller", b"Vsystem\nVtouch canary\n"),
    "import": called("importlib", "import_module", b"Vantigravity\n"),
    "__import__": called("builtins", "__import__", b"Vantigravity\n"),
    "runpy": called("runpy", "run_path", b"Vcanary\n"),
    "pickle in a pickle": called("pickle", "loads", b"B\x10\x00\x00\x00" + b"cposix\nsystem\n."),
    "marshal": called("marshal", "loads", b"C\x01N"),
    "code": called("types", "CodeType", b""),
    "function": called("types", "FunctionType", b""),
    "ctypes": called("ctypes", "CDLL", b"Vlibc.so.6\n"),
    "compile": called("builtins", "compile", EVAL + b"Vx\nVexec\n"),
    "exit": called("builtins", "exit", b""),
    "sys.exit": called("sys", "exit", b"I0\n"),
    "input": called("builtins", "input", b""),
    "breakpoint": called("builtins", "breakpoint", b""),
    "numpy's load": called("numpy", "load", b"Vcanary\n"),
    "numpy's save": called("numpy", "save", b"Vcanary\nI1\n"),
    "numpy's memmap": called("numpy", "memmap", b"Vcanary\nVu1\nVw+\nI0\n(I1\nt"),
    "numpy's fromfile": called("numpy", "fromfile", b"V/etc/passwd\n"),
    "numpy's runstring": called("numpy.testing._private.utils", "runstring", EVAL + b"}"),
    "numpy's core": called("numpy.core.multiarray", "fromfile", b"V/etc/passwd\n"),
    "torch's load": called("torch", "load", b"Vcanary\n"),
    "torch's storage": called("torch.storage", "_load_from_bytes", b"C\x01N"),
    "torch's library": called("torch.ops", "load_library", b"Vcanary\n"),
    "jit's source": called("torch._sources", "parse_def", b"Vcanary\n"),
    "fedmoe's writer": called("fedmoe.io", "write_text_atomic", b"Vcanary\nVx\n"),
    "an empty name": called("", "", b""),
    "a name with a zero": called("posix\0", "system", b"Vx\n"),
}

DOUBLING = b"(t" + b"2\x86" * 100  # a tuple of two references to a tuple of two references to ...
# Small files that C's unpickler, or a careless reader, would spend gigabytes or years on.
GREEDY: dict[str, bytes] = {
    "memo of 2**28": b"]r\x00\x00\x00\x10.",
    "memo of 2**32": b"]r\xff\xff\xff\xff.",
    "memo of a number": b"]p4294967295\n.",
    "bytes of 10**12": b"\x8e" + (10**12).to_bytes(8, "little") + b"x.",
    "text of 10**12": b"\x8d" + (10**12).to_bytes(8, "little") + b"x.",
    "array of 10**12": b"\x96" + (10**12).to_bytes(8, "little") + b"x.",
    "bytes of 4 GB": b"B\xff\xff\xff\xffx.",
    "bytes of 2**63": b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffx.",
    "a frame of 10**12": b"\x80\x04\x95" + (10**12).to_bytes(8, "little") + b"N.",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7fx.",
    "a number of digits": b"L" + b"9" * 5000 + b"L\n.",
    "a tuple as a key": b"}" + DOUBLING + b"Ns.",
    "tuples as keys": b"}(" + DOUBLING + b"Nu.",
    "a dictionary of tuples": b"(" + DOUBLING + b"Nd.",
    "a set of tuples": b"\x8f(" + DOUBLING + b"\x90.",
    "a frozen set of tuples": b"(" + DOUBLING + b"\x91.",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "an array of 10**12": b"cnumpy\nndarray\n(I1000000000000\ntR.",
    "an item of 10**12": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VS1000000000000\ntRVx\ntR.",
    "a format of commas": b"cnumpy\ndtype\n(V" + b"i4," * 1000 + b"\ntR.",
    "a shape of 10**12": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
        b"(I1\n(I1000000000000\ntcnumpy\ndtype\n(Vu1\nI0\nI1\ntRI00\nVx\ntb."
    ),
    "a negative shape": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
        b"(I1\n(I-5\ntcnumpy\ndtype\n(Vu1\nI0\nI1\ntRI00\nVx\ntb."
    ),
    "no stop": b"N",
    "an empty stack": b".",
    "no mark": b"t.",
    "an unknown instruction": b"\xff.",
    "protocol 255": b"\x80\xff.",
    "an unknown memo": b"h\x07.",
    "a buffer outside": b"\x97.",
}


@contextlib.contextmanager
def extension() -> Iterator[None]:
    copyreg.add_extension("posix", "system", EXTENSION)
    try:
        yield
    finally:
        copyreg.remove_extension("posix", "system", EXTENSION)
        copyreg._extension_cache.pop(EXTENSION, None)  # type: ignore[attr-defined]


def in_data(name: str, kind: str, path: str, content: bytes, *words: str) -> Case:
    return Case(f"{kind}: {name}", ["data", "check", *KINDS[kind].args], [path, *words], {path: content})


def data_cases() -> list[Case]:
    refusal = "which is refused because it could run code"
    cases = []
    for kind, path in {"cifar": BATCH, "office": LIST}.items():
        for way, code in WAYS.items():
            words = [] if "PERSID" in way or way.startswith("EXT") or "set" in way else [refusal]
            cases.append(in_data(way, kind, path, b"\x80\x04" + code + b".", *words))
    for name, code in CALLS.items():
        cases.append(in_data(name, "cifar", BATCH, code + b".", refusal))
    cases += [in_data(name, "office", LIST, content) for name, content in GREEDY.items()]
    behind = pickle.dumps(batch())[:-1] + b"0" + WAYS["STACK_GLOBAL"] + b"0" + pickle.dumps(batch())[2:]
    return [
        *cases,
        in_data("behind a batch", "cifar", BATCH, behind, refusal),
        in_data("in the names", "cifar", BATCH.replace("data_batch_1", "batches.meta"), WAYS["INST"] + b".", refusal),
        in_data("in the tests", "cifar", BATCH.replace("data_batch_1", "test_batch"), WAYS["OBJ"] + b".", refusal),
        in_data("in a list of tests", "office", LIST.replace("train", "test"), WAYS["memo"] + b".", refusal),
    ]


# Weights


def archive(content: bytes, name: str = "data.pkl", scripted: bool = False, **more: bytes) -> Callable[[], None]:
    """Writes w.pt, a zip file as torch writes it, with a pickle of one's own."""

    def write() -> None:
        with zipfile.ZipFile("w.pt", "w") as out:
            out.writestr("w/version", b"3\n")
            out.writestr("w/byteorder", b"little")
            if scripted and name != "constants.pkl":
                out.writestr("w/constants.pkl", b"\x80\x02).")
            out.writestr(f"w/{name}", content)
            for other, data in more.items():
                out.writestr(f"w/{other}", data)

    return write


def plain(content: bytes) -> Callable[[], None]:
    def write() -> None:
        Path("w.pt").write_bytes(content)

    return write


def bomb(name: str, scripted: bool) -> Callable[[], None]:
    """An archive whose pickle is a gigabyte of zeros, of which a megabyte is stored."""

    def write() -> None:
        archive(b"", "other", scripted)()
        with zipfile.ZipFile("w.pt", "a", zipfile.ZIP_DEFLATED) as out, out.open(f"w/{name}", "w") as member:
            for _ in range(256):
                member.write(bytes(2**20))

    return write


def weights() -> dict[str, tuple[Callable[[], None], tuple[str, ...]]]:
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    cases: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {}
    for way in ("GLOBAL and REDUCE", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "EXT1", "POP", "in a list", "BINPERSID"):
        code = b"\x80\x02" + WAYS[way] + b"."
        cases[f"archive of tensors: {way}"] = archive(code), ()
        cases[f"archive of code: {way}"] = archive(code, scripted=True), ()
        cases[f"old file: {way}"] = plain(legacy + code), ()
        cases[f"bare pickle: {way}"] = plain(code), ()
    for name in (
        "eval",
        "open",
        "torch's load",
        "torch's storage",
        "jit's source",
        "getattr",
        "fedmoe's writer",
        "exit",
    ):
        cases[f"archive of code: {name}"] = archive(CALLS[name] + b".", scripted=True), ("never loaded",)
        cases[f"archive of tensors: {name}"] = archive(b"\x80\x02" + CALLS[name] + b"."), ()
    for name in ("memo of 2**32", "bytes of 10**12", "a tuple as a key", "tuples as keys", "no stop", "deep lists"):
        cases[f"archive of code: {name}"] = archive(GREEDY[name], scripted=True), ("truncated, damaged",)
        cases[f"archive of tensors: {name}"] = archive(GREEDY[name]), ()
    module = b"c__torch__\nM\n)\x81"
    children = b"".join(module + b"}(Va\ng%d\nVb\ng%d\nub" % (i, i) + b"p%d\n0" % (i + 1) for i in range(60))
    return cases | {
        "constants": (archive(WAYS["OBJ"] + b".", "constants.pkl", scripted=True), ("truncated, damaged",)),
        "modules twice in modules": (
            archive(b"\x80\x02" + module + b"p0\n0" + children + b"g60\n.", scripted=True),
            ("truncated, damaged",),
        ),
        "a module in itself": (archive(b"\x80\x02" + module + b"p0\n}Va\ng0\nsb.", scripted=True), ("truncated",)),
        "a module that is a number": (archive(b"\x80\x02K\x03.", scripted=True), ("truncated, damaged",)),
        "a class as the module": (archive(b"c__torch__\nM\n.", scripted=True), ()),
        "contents for a name": (
            archive(b"ctorch._utils\n_rebuild_tensor_v2\n(N}V__defaults__\n)stb.", scripted=True),
            ("truncated, damaged",),
        ),
        "a storage outside": (
            archive(b"\x80\x02(Vstorage\nctorch\nFloatStorage\nV../../a\nVcpu\nK\x01tQ.", scripted=True),
            ("truncated, damaged",),
        ),
        "a bomb of code": (bomb("data.pkl", scripted=True), ("truncated, damaged",)),
        "a bomb of tensors": (bomb("data.pkl", scripted=False), ("truncated, damaged",)),
        "no archive": (plain(b"PK\x03\x04" + bytes(100)), ("truncated, damaged",)),
        "an empty archive": (plain(b"PK\x05\x06" + bytes(18)), ("truncated, damaged",)),
        "many instructions": (plain(b"\x80\x02" + b"N0" * 10_000 + WAYS["INST"] + b"."), ()),
    }


WEIGHTS = weights()


def test_there_are_many_cases() -> None:
    assert len(data_cases()) >= 120, len(data_cases())
    assert len(WEIGHTS) >= 60, len(WEIGHTS)


@pytest.mark.parametrize("way", ALIVE)
def test_python_runs_the_payloads(way: str, here: Path) -> None:
    with extension(), contextlib.suppress(Exception):
        pickle.loads(b"\x80\x04" + WAYS[way] + b".")
    assert Path("canary").exists()


@pytest.mark.usefixtures("bounded")
@each(data_cases())
def test_a_data_set_runs_nothing(case: Case, refused: Refused) -> None:
    kind = case.name.partition(":")[0]
    KINDS[kind].write(Path("data"))
    with extension():
        case.check(refused)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_run_nothing(name: str, refused: Refused) -> None:
    write, words = WEIGHTS[name]
    write()
    with extension():
        refused(["fit", "--clip.architecture=fedmoe-tiny", "--clip.weights=w.pt"], "The weights file w.pt", *words)
