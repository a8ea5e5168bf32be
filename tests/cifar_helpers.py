"""CIFAR's files in torchvision's layout: small ones with the published names, in pickles of any protocol."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from fedmoe.data import CIFAR10, CIFAR100

BOTH = (CIFAR10, CIFAR100)
NAMES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The twenty superclasses of the data set's page, five classes each.
SUPERCLASSES = """
    beaver dolphin otter seal whale, aquarium_fish flatfish ray shark trout, orchid poppy rose sunflower tulip,
    bottle bowl can cup plate, apple mushroom orange pear sweet_pepper, clock keyboard lamp telephone television,
    bed chair couch table wardrobe, bee beetle butterfly caterpillar cockroach, bear leopard lion tiger wolf,
    bridge castle house road skyscraper, cloud forest mountain plain sea, camel cattle chimpanzee elephant kangaroo,
    fox porcupine possum raccoon skunk, crab lobster snail spider worm, baby boy girl man woman,
    crocodile dinosaur lizard snake turtle, hamster mouse rabbit shrew squirrel,
    maple_tree oak_tree palm_tree pine_tree willow_tree, bicycle bus motorcycle pickup_truck train,
    lawn_mower rocket streetcar tank tractor
"""
NAMES_100 = sorted(name for group in SUPERCLASSES.split(",") for name in group.split())
NAMES: dict[type, list[str]] = {CIFAR10: NAMES_10, CIFAR100: NAMES_100}
FILES: dict[type, tuple[str, list[str], str]] = {
    CIFAR10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], "batches.meta"),
    CIFAR100: ("cifar-100-python", ["train", "test"], "meta"),
}
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def write_cifar(root: Path, cls: type, each: int = 20, protocol: int = 2) -> Path:
    """A small data set as torchvision extracts it; each file has ``each`` images, with labels that go round."""
    folder, names, meta = FILES[cls]
    (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        labels = [i % len(NAMES[cls]) for i in range(each)]
        batch = {"data": rng.integers(0, 256, (each, 3072), dtype=np.uint8), "batch_label": name}
        batch |= {"labels": labels} if cls is CIFAR10 else {"fine_labels": labels, "coarse_labels": [0] * each}
        (root / folder / name).write_bytes(pickle.dumps(batch, protocol))
    content = {"label_names" if cls is CIFAR10 else "fine_label_names": NAMES[cls]}
    (root / folder / meta).write_bytes(pickle.dumps(content, protocol))
    return root / folder


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote CIFAR's own: texts of bytes, and numpy's old module name; opcode by opcode."""
    rows, width = data.shape
    contents = data.tobytes()
    state = b"(I1\n(I%d\nI%d\nt" % (rows, width)  # version and shape, then the number format
    state += b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntb"
    state += b"I00\nT" + len(contents).to_bytes(4, "little") + contents + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR" + state
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + b"".join(b"K%c" % label for label in labels) + b"eu."
