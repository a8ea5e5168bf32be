"""DomainNet and Office-Caltech10: FedBN's lists and plain folders, on small generated files, up to `fit`."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from feature_helpers import paths_of
from PIL import Image

from fedmoe.cli import experiment_parser, main
from fedmoe.data.check import check
from fedmoe.data.partition_domains import DomainDirichlet
from fedmoe.data.sets.domainnet import DomainNet
from fedmoe.data.sets.fedbn_lists import path_below, read_list
from fedmoe.data.sets.office_caltech import OfficeCaltech10
from fedmoe.errors import UserError
from fedmoe.io import read_jsonl

# The published facts: METHOD.md, "Data", and table 5.
FACTS = {
    DomainNet: (
        "DomainNet",
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        ["bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra"],
        (18278, 4573, 10),
    ),
    OfficeCaltech10: (
        "office_caltech_10",
        ("amazon", "caltech", "dslr", "webcam"),
        [
            "back_pack",
            "bike",
            "calculator",
            "headphones",
            "keyboard",
            "laptop_computer",
            "monitor",
            "mouse",
            "mug",
            "projector",
        ],
        (2025, 508, 10),
    ),
}
BOTH = pytest.mark.parametrize("kind", list(FACTS), ids=lambda kind: kind.__name__)


def write_image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_tree(root, kind, counts=(3, 1), prefix="", pack=None, protocol=4):
    """Images and lists as FedBN has them: ``counts`` train and test images of each class in each domain."""
    folder, domains, classes, _ = FACTS[kind]
    number = 0
    for domain in domains:
        for part, count in zip(("train", "test"), counts, strict=True):
            paths, names = [], []
            for name in classes:
                for i in range(count):
                    relative = f"{folder}/{domain}/{name}/{part}_{i}.jpg"
                    write_image(root / relative, number := number + 1)
                    paths.append(prefix + relative)
                    names.append(name)
            content = (np.array(paths), np.array(names)) if pack is None else pack(paths, names)
            (root / folder / f"{domain}_{part}.pkl").write_bytes(pickle.dumps(content, protocol))
    return root


@BOTH
def test_lists_are_read(kind, tmp_path):
    folder, domains, classes, facts = FACTS[kind]
    data = kind(root=str(write_tree(tmp_path, kind)))
    assert data.class_names == tuple(classes) and data.domain_names == domains
    assert (data.published.train, data.published.test, data.published.classes) == facts
    assert len(data.train) == 3 * 10 * len(domains) and len(data.test) == 10 * len(domains)
    for part, split in (("train", data.train), ("test", data.test)):
        for path, label, domain in zip(paths_of(split), split.labels, split.domains, strict=True):
            parts = Path(path).relative_to(tmp_path).parts
            assert parts[:3] == (folder, domains[domain], classes[label]) and parts[3].startswith(part)
    with Image.open(paths_of(data.test)[17]) as image:
        assert np.array_equal(np.asarray(data.test.image(17)), np.asarray(image))


@pytest.mark.parametrize(
    ("prefix", "pack", "protocol"),
    [
        ("../../data/", None, 2),
        ("/somewhere/else/data/", None, 4),
        ("./", lambda a, b: np.array([a, b]), 4),
        ("", lambda a, b: [np.array(a, dtype=object), np.array(b, dtype=object)], 5),
        ("", lambda a, b: (a, b), 0),
        ("..\\data\\", None, 4),
    ],
)
def test_lists_of_other_machines_and_writers(tmp_path, prefix, pack, protocol):
    data = OfficeCaltech10(root=str(write_tree(tmp_path, OfficeCaltech10, (1, 1), prefix, pack, protocol)))
    assert len(data.train) == len(data.test) == 40
    assert all(os.path.isfile(path) for path in paths_of(data.train))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("DomainNet/real/bird/x.jpg", "real/bird/x.jpg"),
        ("../../data/DomainNet/real/bird/x.jpg", "real/bird/x.jpg"),
        ("/data/domainnet/copy/DomainNet/real/bird/x.jpg", "real/bird/x.jpg"),
        ("C:\\data\\DomainNet\\real\\bird\\x.jpg", "real/bird/x.jpg"),
        ("real/./bird//x.jpg", "real/bird/x.jpg"),
        ("DomainNet/../../secret.jpg", None),
        ("DomainNet/real/../../../secret.jpg", None),
        ("../secret.jpg", None),
        ("/etc/secret.jpg", None),
        ("C:/secret.jpg", None),
        ("DomainNet/real/bird/x\0.jpg", None),
        ("DomainNet/", None),
        ("", None),
    ],
)
def test_listed_paths_stay_below_the_folder(text, inside):
    assert path_below(text, "DomainNet") == inside


class RunsCode:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ((np.array(["DomainNet/../x.jpg"]), np.array(["bird"])), "'DomainNet/../x.jpg', which does not lie below"),
        ((np.array(["a/b.jpg"]), np.array(["brid"])), "the class 'brid'; valid is one of bird, feather"),
        ((np.array(["a/b.jpg"]), np.array([3])), "does not hold what FedBN's lists hold"),
        ((np.array(["a", "b"]), np.array(["bird"])), "does not hold what FedBN's lists hold"),
        ({"paths": ["a"]}, "does not hold what FedBN's lists hold"),
        ((["a"], ["bird"], ["x"]), "does not hold what FedBN's lists hold"),
        ("ab", "does not hold what FedBN's lists hold"),
    ],
)
def test_a_wrong_list_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "real_train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        read_list(path, "DomainNet", DomainNet.classes)
    assert sentence in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_list_that_runs_code_is_refused_and_runs_nothing(tmp_path):
    path = tmp_path / "real_train.pkl"
    path.write_bytes(pickle.dumps((np.array(["x"]), RunsCode(tmp_path / "made"))))
    with pytest.raises(UserError, match="refused"):
        read_list(path, "DomainNet", DomainNet.classes)
    assert not (tmp_path / "made").exists()


def test_missing_files_are_said(tmp_path):
    with pytest.raises(UserError, match=r"data.root is .*, but there is no folder .*DomainNet; valid is"):
        DomainNet(root=str(tmp_path / "nowhere")).train  # noqa: B018
    write_tree(tmp_path, DomainNet, (1, 1))
    for path in (tmp_path / "DomainNet").glob("real_*.pkl"):
        path.unlink()
    with pytest.raises(UserError, match=r"2 of 12 lists missing \(the first is real_train.pkl\).*data.layout=folders"):
        DomainNet(root=str(tmp_path)).train  # noqa: B018
    (tmp_path / "DomainNet/sketch/zebra").rename(tmp_path / "DomainNet/sketch/zebras")
    with pytest.raises(UserError, match="sketch/zebra is missing or has no image"):
        DomainNet(root=str(tmp_path), layout="folders").train  # noqa: B018


def test_plain_folders_are_split_by_their_seed_alone(tmp_path):
    write_tree(tmp_path, OfficeCaltech10, (4, 1))
    write_image(tmp_path / "office_caltech_10/amazon/stapler/x.jpg", 0)  # another class
    (tmp_path / "office_caltech_10/amazon/bike/notes.txt").write_text("no image")

    def read(**settings):
        return OfficeCaltech10(root=str(tmp_path), layout="folders", **settings)

    data = read()
    assert len(data.train) == 4 * 40 and len(data.test) == 40  # a fifth of 5 images of each class and domain
    assert set(zip(data.test.labels.tolist(), data.test.domains.tolist(), strict=True)) == {
        (c, d) for c in range(10) for d in range(4)
    }
    assert not set(paths_of(data.train)) & set(paths_of(data.test))
    assert len(set(paths_of(data.train)) | set(paths_of(data.test))) == 200
    assert read().test.paths == paths_of(data.test) != read(split_seed=1).test.paths
    assert len(read(test_fraction=0.4).test) == 80
    with pytest.raises(UserError, match=r"data.test_fraction is 1.0; valid"):
        read(test_fraction=1.0)


def test_the_cache_key_sees_every_change(tmp_path):
    def key(**settings):
        return OfficeCaltech10(root=str(tmp_path), **settings).cache_key()

    write_tree(tmp_path, OfficeCaltech10, (2, 1))
    first = key()
    assert key() == first != key(layout="folders")
    assert key(layout="folders") != key(layout="folders", split_seed=1)
    changed = tmp_path / "office_caltech_10/dslr/mug/train_0.jpg"
    write_image(changed, 10**6)
    os.utime(changed, ns=(1, 1))
    second = key()
    assert second != first
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "office_caltech_10").rename(moved / "office_caltech_10")
    assert OfficeCaltech10(root=str(moved)).cache_key() == second
    changed = moved / "office_caltech_10/dslr/mug/train_0.jpg"
    changed.unlink()
    assert OfficeCaltech10(root=str(moved)).cache_key() != second


def test_check_names_what_is_missing_or_damaged(tmp_path):
    write_tree(tmp_path, OfficeCaltech10, (2, 1))
    folder = tmp_path / "office_caltech_10"
    report = check(OfficeCaltech10(root=str(tmp_path)), headers=True)
    assert report.exit_code == 1 and len(report.problems) == 1
    assert "80 training examples, not 2025; 40 test examples, not 508." in report.problems[0]
    assert "Files: all 120 are there" in report.text and "Headers: all 120 images can be read" in report.text
    assert f"Classes: {', '.join(FACTS[OfficeCaltech10][2])}\n" in report.text
    assert "amazon        20 train      10 test" in report.text
    for i in range(2):
        (folder / f"webcam/mouse/train_{i}.jpg").unlink()
    (folder / "dslr/mug/test_0.jpg").write_bytes(b"no image")
    data = OfficeCaltech10(root=str(tmp_path))
    text = check(data).text
    assert f"2 of 120 image files are missing: {folder}/webcam/mouse/train_0.jpg, {folder}/webcam/mouse/train_1" in text
    assert "cannot be read" not in text
    assert f"1 of 118 images cannot be read: {folder}/dslr/mug/test_0.jpg." in check(data, headers=True).text


def test_check_names_images_that_are_in_both_lists(tmp_path):
    write_tree(tmp_path, OfficeCaltech10, (1, 1))
    lists = tmp_path / "office_caltech_10"
    (lists / "dslr_test.pkl").write_bytes((lists / "dslr_train.pkl").read_bytes())
    assert "10 files are training and test images at once" in check(OfficeCaltech10(root=str(tmp_path))).text


def test_check_finds_nothing_where_sizes_are_as_published(tmp_path):
    """The published 2025 + 508 examples; the lists may name one image many times, the files stay few."""
    folder, domains, classes, (train, test, _) = FACTS[OfficeCaltech10]
    write_tree(tmp_path, OfficeCaltech10, (1, 1))
    rest = {"train": train, "test": test}
    for number, domain in enumerate(domains):
        for part, total in (("train", train), ("test", test)):
            count = rest[part] if number == 3 else total // 4
            rest[part] -= count
            names = [classes[i % 10] for i in range(count)]
            paths = [f"{folder}/{domain}/{name}/{part}_0.jpg" for name in names]
            content = pickle.dumps((np.array(paths), np.array(names)))
            (tmp_path / folder / f"{domain}_{part}.pkl").write_bytes(content)
    report = check(OfficeCaltech10(root=str(tmp_path), shots=1))
    assert report.exit_code == 0 and report.problems == ()
    assert "Sizes: as in table 5 of the paper" in report.text and "No problem found." in report.text
    assert "With data.shots and data.subset as set: 40 training and 508 test examples" in report.text


@BOTH
@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_fit_reports_every_domain(kind, layout, tmp_path):
    _, domains, classes, _ = FACTS[kind]
    write_tree(tmp_path / "data", kind, (4, 2), prefix="../../data/")
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_config("vit")))
    each = 2
    arguments = [
        *("fit", f"--clip.model_config={tmp_path / 'tiny.json'}", "--clip.pretrained=null"),
        *(f"--data={kind.__name__}", f"--data.root={tmp_path / 'data'}", f"--data.layout={layout}"),
        "--data.test_fraction=0.2",
        *("--partition=DomainDirichlet", "--partition.alpha=1.0", f"--partition.clients_per_domain={each}"),
        *(f"--federation.clients={each * len(domains)}", "--federation.participation=0.25", "--federation.rounds=1"),
        *("--federation.local_epochs=1", "--prompt.length=2", "--method=PromptFL", "--runtime.threads=1"),
        *(f"--features.cache_dir={tmp_path / 'cache'}", f"--output.dir={tmp_path}", "--output.name=run"),
    ]
    assert main(arguments) == 0
    run = tmp_path / "run"
    partition = json.loads((run / "partition.json").read_text())
    assert partition["class_names"] == classes
    assert partition["domains"] == [domain for domain in domains for _ in range(each)]
    assert np.array(partition["counts_train"]).sum() == 4 * 10 * len(domains) + (layout == "folders") * 10 * len(
        domains
    )
    last, clients = read_jsonl(run / "rounds.jsonl")[-1], read_jsonl(run / "clients.jsonl")
    scored = [client for client in clients if client["round"] == 1 and client["accuracy"] is not None]
    expected: dict[str, list[float]] = {}
    for client in scored:
        expected.setdefault(client["domain"], []).append(100 * client["correct"] / client["total"])
    assert set(last["accuracy_per_domain"]) == set(domains) == set(expected)
    for domain, mean in last["accuracy_per_domain"].items():
        assert mean == pytest.approx(np.mean(expected[domain]), abs=1e-4)


def test_another_class_starts_from_its_own_defaults():
    """Settings of the default classes that have the same name (test_fraction, alpha, min_size) must not leak."""
    parser = experiment_parser()
    built = parser.instantiate(parser.parse_args(["--data=DomainNet", "--partition=DomainDirichlet"]))
    assert built.data.test_fraction == 0.2
    assert built.partition == DomainDirichlet(alpha=0.3, clients_per_domain=5, min_size=5)


def test_fit_refuses_a_wrong_number_of_clients(tmp_path, capsys):
    write_tree(tmp_path, OfficeCaltech10, (2, 1))
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_config("vit")))
    arguments = ["fit", f"--clip.model_config={tmp_path / 'tiny.json'}", "--clip.pretrained=null"]
    arguments += ["--data=OfficeCaltech10", f"--data.root={tmp_path}", "--partition=DomainDirichlet"]
    arguments += [
        "--method=PromptFL",
        "--federation.clients=10",
        f"--output.dir={tmp_path}",
        f"--features.cache_dir={tmp_path}",
    ]
    assert main(arguments) == 2
    assert "valid is 20." in capsys.readouterr().err
    assert not list(tmp_path.glob("features*"))


def test_reading_needs_no_torch(tmp_path):
    import subprocess

    write_tree(tmp_path, OfficeCaltech10, (1, 1))
    script = (
        "import sys; from fedmoe.data.sets.office_caltech import OfficeCaltech10; from fedmoe.data.check import check\n"
        f"assert 'Files: all 80' in check(OfficeCaltech10(root={str(tmp_path)!r})).text\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
