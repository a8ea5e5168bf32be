"""Labels, error texts and file names from outside, in a real run: a terminal obeys none of them, rich neither."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn

from fedmoe.display import Bars, Words

ROOT = Path(__file__).parents[1]
HOSTILE = "[/b] [red]x {y} :smile: \033]0;owned\a\u202e"
SHOWN = "[/b] [red]x {y} :smile: \\x1b]0;owned\\x07\\u202e"
METHOD = f"""
from fedmoe.methods import PromptFL

class Hostile(PromptFL):
    label = "label " + {HOSTILE!r}
    def loss(self, client, image_features, labels):
        if client.client_id == 1:
            raise RuntimeError("cannot read [/data/x.png] " + {HOSTILE!r})
        return super().loss(client, image_features, labels)
"""


def on_a_terminal(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as program:
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError:  # EIO: the program has ended
            pass
    os.close(ours)
    return program.returncode, shown.decode()


def through_a_pipe(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    return done.returncode, done.stdout.decode()


@pytest.mark.parametrize("show", [on_a_terminal, through_a_pipe])
def test_text_from_outside_is_shown_as_it_is(show, tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(METHOD)
    images = tmp_path / "[/b]"
    for label in ("zero", "one"):
        (images / label).mkdir(parents=True)
        for i in range(30):
            Image.new("L", (8, 8), 8 * i).save(images / label / f"{i:02d}.png")
    (images / "one" / "\033]0;owned\a.png").write_bytes(b"no image")
    command = [
        *(sys.executable, "-m", "fedmoe.cli", "fit", f"--config={ROOT / 'configs/embedded.yaml'}"),
        *(
            "--method=hostile.Hostile",
            "--data=ImageFolder",
            f"--data.root={images}",
            "--partition=IID",
            "--features.damaged=skip",
        ),
        *("--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--runtime.threads=1"),
        *(f"--features.cache_dir={tmp_path / 'features'}", f"--output.dir={tmp_path}", "--output.name=run"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "COLUMNS": "200"}
    environment |= {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
    code, shown = show(command, environment)
    assert code == 0, shown
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [(one["client"], one["rounds"]) for one in summary["failed_clients"]] == [(1, [1])]
    assert f"label {SHOWN}: round 1, client 1 failed: RuntimeError: cannot read [/data/x.png] {SHOWN}" in shown
    assert "are left out" in shown and "\\x1b]0;owned\\x07.png" in shown
    assert ("\033[" in shown) == (show is on_a_terminal)  # there were colours and bars to be confused
    assert "\033]" not in shown and "\a" not in shown and "\u202e" not in shown
    assert "Traceback" not in shown
    code, shown = show([*command[:3], "features", "list", f"--features.cache_dir={tmp_path / 'features'}"], environment)
    assert (code, "\033]" in shown) == (0, False), shown


def test_bars_show_words_as_they_are() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=200, color_system=None)
    bars = Bars(console, Words(style="bold"), BarColumn(10), Words("text"))
    assert not bars.disable
    bar = bars.add_task(f"title {HOSTILE}", total=2)
    bars.update(bar, completed=1, text=f"text {HOSTILE}")
    bars.refresh()
    shown = output.getvalue()
    assert f"title {SHOWN}" in shown and f"text {SHOWN}" in shown
    assert "\033]" not in shown and "\a" not in shown
    bars.remove_task(bar)
    bars.stop()
    bars.stop()


def test_where_there_is_no_terminal_there_are_no_bars() -> None:
    output = io.StringIO()
    console = Console(file=output)
    bars = Bars(console, Words())
    bars.update(bars.add_task("title", total=1), completed=1)
    bars.stop()
    assert bars.disable and output.getvalue() == ""
