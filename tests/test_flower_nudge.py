"""A SuperNode that holds answers back, since a run ended just as it took an order: the next runs do not wait for it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

pytest.importorskip("flwr")

from flower_sites import CLIENTS, Sites, running

from fedmoe.cli import main
from fedmoe.engine.line import HELLO, NUDGE, Answer, Order
from fedmoe.engine.nudge import PAIR, SILENCE, Nudges
from fedmoe.io import read_jsonl

pytestmark = pytest.mark.flower
HELD, OTHER = 0, 1  # a client whose SuperNode holds answers back, and one whose SuperNode does not
FREED = "the SuperNode held answers back; it does so no more"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    with running(tmp_path_factory.mktemp("federation")) as found:
        # A client that answers before its SuperNode looks for answers frees it by chance.
        found.stop(found.clients[HELD])
        found.start_client(HELD, slow=1.0)
        yield found


def in_turn(sites: Sites, client: int) -> bool:
    """Whether each of a run's orders was answered before the next one came to the SuperNode."""
    moves = re.findall(r"(Receiving|Sending): (train|evaluate) message", sites.log(f"node-{client}"))
    asked = ["evaluate", *["train", "evaluate"] * 3]
    return moves == [(move, ask) for ask in asked for move in ("Receiving", "Sending")]


def test_status_hears_a_client_whose_supernode_holds_answers_back(
    sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    sites.end_early(HELD)
    capsys.readouterr()
    assert main(["engine", "status", *sites.settings, *sites.engine]) == 0
    told = capsys.readouterr().out.splitlines()
    for i in range(CLIENTS):
        assert f", says it is client {i} with fedmoe " in told[i]
    assert sites.log(f"client-{HELD}").count(FREED) == 1


def test_a_run_frees_a_supernode_that_holds_answers_back_and_ends_with_the_same_bits(sites: Sites) -> None:
    freed = sites.log(f"client-{HELD}").count(FREED)
    sites.end_early(HELD)
    assert main(sites.fit("after", "--engine.connect=60")) == 0
    assert sites.lines("after") == sites.lines("here")
    assert sites.log(f"client-{HELD}").count(FREED) == freed + 1
    assert not any(FREED in sites.log(f"client-{i}") for i in range(CLIENTS) if i != HELD)
    assert in_turn(sites, HELD)
    line = read_jsonl(sites.folder / "runs" / "after" / "rounds.jsonl")[-1]["line"]
    assert line["messages"] == 2 * CLIENTS  # the nudges count in what the SuperLink carries, as hellos do
    assert line["down"] < line["wire_down"]


def test_a_client_whose_supernode_waits_for_it_answers_nudges_and_all_else(sites: Sites) -> None:
    line = sites.line()
    line.open()
    try:
        node = sites.node_of(line, OTHER)
        owed = {line.send(node, order): order.ask for order in (*PAIR, Order(HELLO, "awake"))}
        kinds = []
        while owed:
            for name, answer in line.receive(owed):
                assert isinstance(answer, Answer), answer
                kinds.append((owed.pop(name), answer.kind))
        assert kinds == [(PAIR[0].ask, "nothing"), (PAIR[1].ask, "nothing"), (HELLO, "hello")]
        assert FREED not in sites.log(f"client-{OTHER}")
    finally:
        line.close()


@pytest.mark.slow
def test_a_client_that_takes_long_for_each_answer_is_nudged_seldom(sites: Sites) -> None:
    options = ("--federation.rounds=1",)
    assert main([*sites.fit("short_here", *options), "--engine.kind=in_process"]) == 0
    sites.stop(sites.clients[OTHER])
    sites.start_client(OTHER, slow=SILENCE + 2)
    before = sites.log(f"client-{OTHER}")
    assert main(sites.fit("short", *options)) == 0
    assert sites.lines("short") == sites.lines("short_here")
    log = sites.log(f"client-{OTHER}").removeprefix(before)
    asked = re.findall(r"(query|query\.nudge|train|evaluate): ", log)
    assert [ask for ask in asked if ask != NUDGE] == [HELLO, "evaluate", "train", "evaluate"]
    assert asked[:3] == [HELLO, NUDGE, NUDGE]
    assert len(asked) <= 4 + 2 * len(PAIR)
    assert FREED not in log


class Clock:
    """A time that is set."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_silent_node_is_nudged_by_one_pair_at_a_time_and_ever_more_seldom() -> None:
    clock = Clock()
    nudges = Nudges(clock)
    nudges.sent(1, "order")
    nudges.sent(2, "other")
    clock.time = SILENCE
    assert nudges.due(["order", "other"]) == []
    clock.time += 1
    assert nudges.due(["order"]) == [1]  # nobody waits for the other one
    nudges.nudged(1, ["first", "second"])
    clock.time += 1000
    assert nudges.due(["order"]) == []  # however long it trains
    assert nudges.names == ["first", "second"]
    assert not nudges.answering
    # Answers to nudges, or why there are none, are nobody's. That of the first one may never come.
    hello = ("order", Answer("hello"))
    assert nudges.sift([("first", Answer("nothing")), hello]) == [hello]
    assert nudges.names == ["first", "second"]
    assert nudges.answering
    assert nudges.sift([("second", "Error: Node Unavailable")]) == []
    assert nudges.names == []
    assert not nudges.answering
    nudges.sent(1, "next")
    clock.time += 2 * SILENCE
    assert nudges.due(["next"]) == []
    clock.time += 1
    assert nudges.due(["next"]) == [1]
    nudges.nudged(1, ["third", "fourth"])
    assert nudges.sift([("fourth", Answer("nothing"))]) == []
    clock.time += 4 * SILENCE
    assert nudges.due(["next"]) == []
    clock.time += 1
    assert nudges.due(["next"]) == [1]
    assert nudges.due(["other"]) == [2]


def test_an_answer_begins_the_silence_anew() -> None:
    clock = Clock()
    nudges = Nudges(clock)
    nudges.sent(1, "one")
    nudges.sent(1, "two")
    clock.time = SILENCE + 1
    assert nudges.sift([("one", Answer("trained"))]) == [("one", Answer("trained"))]
    assert nudges.due(["two"]) == []
    clock.time += SILENCE + 1
    assert nudges.due(["two"]) == [1]
