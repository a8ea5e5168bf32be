"""The embedded digits in domains: one real data set under the standard shifts, on every machine.

Shape letters: n images, S side of the enlarged images in pixels.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedmoe.data.base import RawData, Split
from fedmoe.data.sets.digits import Digits, enlarge
from fedmoe.errors import UserError, did_you_mean
from fedmoe.seeds import numpy_generator

if TYPE_CHECKING:
    from PIL import Image

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_CONTRAST = 64.0  # least difference in luminance, in grey values, between a random ink and its background
_FRAGMENTS = 8  # pieces of other digits in a cluttered image
_ROTATED = re.compile(r"rotated_(\d{1,3})")


@dataclass(frozen=True, eq=False)
class DigitDomains(Digits):
    """scikit-learn's handwritten digits in several domains, each of which shows every digit once, shifted in its way.

    The shifts are those of the usual digit benchmarks: rotation (Rotated MNIST), random colours of ink and background
    (Colored MNIST and MNIST-M), pieces of other digits in the background (Cluttered MNIST), inversion, and Gaussian
    blur. The split into train and test is that of ``Digits`` in all domains, so a test digit is a training image in no
    domain. Under a domain partition a client belongs to one domain, and sees each digit at most once.
    """

    domains: tuple[str, ...] = ("plain", "rotated_90", "coloured", "inverted", "blurred", "cluttered")
    """The domains, in order: plain, coloured, inverted, blurred, cluttered, and rotated_<degrees> (counter-clockwise,
    1 to 359) for any number of angles."""
    blur: float = 3.0
    """Standard deviation in pixels of the Gaussian of the domain blurred."""

    name = "digit_domains"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "domains", tuple(self.domains))
        if not self.domains:
            raise UserError("data.domains is empty; valid is at least one domain, such as plain.")
        for domain in self.domains:
            angle = _angle(domain)
            if domain not in _SHIFTS and (angle is None or not 0 < angle < 360):
                raise UserError(
                    f"data.domains has {domain!r}; valid are {', '.join(_SHIFTS)}, and rotated_1 to rotated_359"
                    + (did_you_mean(domain, list(_SHIFTS)) or ".")
                )
        doubled = next((domain for domain in self.domains if self.domains.count(domain) > 1), None)
        if doubled:
            raise UserError(f"data.domains has {doubled!r} more than once; valid are different domains.")
        if not (math.isfinite(self.blur) and self.blur > 0):
            raise UserError(f"data.blur is {self.blur!r}; valid is a finite number above 0.")

    def _read(self) -> RawData:
        plain = super()._read()
        labels, count = self._pixels[1], len(self.domains)
        train, test = (
            Split(
                np.tile(labels[indices], count),
                _Shifted(self, indices),
                np.repeat(np.arange(count), len(indices)),
            )
            for indices in self._indices
        )
        return RawData(plain.class_names, self.domains, train, test)

    def _source_key(self) -> str:
        shifts = f"domains={','.join(self.domains)} blur={self.blur:g} seed={self.seed} rule 1"
        return f"{super()._source_key()} {hashlib.blake2b(shifts.encode(), digest_size=8).hexdigest()}"

    def grey(self, i: int) -> np.ndarray:
        """Digit i of all 1,797, enlarged, in grey values [S, S] uint8."""
        return np.asarray(enlarge(self._pixels[0][i], self.size))[..., 0]


@dataclass(frozen=True, eq=False)
class _Shifted:
    """The image function of a split: domain by domain, each with the same digits in the same order."""

    data: DigitDomains
    indices: np.ndarray  # [n] of the split, into all digits

    def __call__(self, i: int) -> Image.Image:
        from PIL import Image

        domain, place = divmod(i, len(self.indices))
        digit, name = int(self.indices[place]), self.data.domains[domain]
        shift = _SHIFTS.get(name, _rotated)
        generator = numpy_generator(self.data.seed, "digit domains", name, digit)  # one for each image
        return Image.fromarray(shift(self.data, digit, name, generator)).convert("RGB")


Shift = Callable[[DigitDomains, int, str, np.random.Generator], np.ndarray]  # -> [S, S] or [S, S, 3], uint8


def _plain(data: DigitDomains, digit: int, domain: str, generator: np.random.Generator) -> np.ndarray:
    return data.grey(digit)


def _inverted(data: DigitDomains, digit: int, domain: str, generator: np.random.Generator) -> np.ndarray:
    return 255 - data.grey(digit)


def _rotated(data: DigitDomains, digit: int, domain: str, generator: np.random.Generator) -> np.ndarray:
    """Turned about the centre by bicubic interpolation, exactly for multiples of 90 degrees; black comes in."""
    from PIL import Image

    turned = Image.fromarray(data.grey(digit)).rotate(_angle(domain) or 0, Image.Resampling.BICUBIC)
    return np.asarray(turned)


def _blurred(data: DigitDomains, digit: int, domain: str, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(data.grey(digit)).filter(ImageFilter.GaussianBlur(data.blur)))


def _coloured(data: DigitDomains, digit: int, domain: str, generator: np.random.Generator) -> np.ndarray:
    """Ink and background are colours drawn for each image, drawn again until their luminance differs enough."""
    while True:
        back, ink = generator.integers(0, 256, (2, 3)).astype(float)
        if abs((ink - back) @ _LUMINANCE) >= _CONTRAST:
            break
    share = data.grey(digit)[..., None] / 255
    return np.rint(back + (ink - back) * share).astype(np.uint8)


def _cluttered(data: DigitDomains, digit: int, domain: str, generator: np.random.Generator) -> np.ndarray:
    """Quarter-sized pieces of random training digits lie behind the digit; the brighter of the two is seen."""
    train = data._indices[0]
    side = data.size // 4
    behind = np.zeros((data.size, data.size), dtype=np.uint8)
    for _ in range(_FRAGMENTS):
        other = data.grey(int(train[generator.integers(len(train))]))
        (y, x), (to_y, to_x) = (
            generator.integers(side, data.size - 2 * side + 1, 2),
            generator.integers(0, data.size - side + 1, 2),
        )
        target = behind[to_y : to_y + side, to_x : to_x + side]
        np.maximum(target, other[y : y + side, x : x + side], out=target)
    return np.maximum(data.grey(digit), behind)


_SHIFTS: Mapping[str, Shift] = {
    "plain": _plain,
    "coloured": _coloured,
    "inverted": _inverted,
    "blurred": _blurred,
    "cluttered": _cluttered,
}


def _angle(domain: str) -> int | None:
    """The degrees in the name of a rotated domain; None for other names."""
    match = _ROTATED.fullmatch(domain)
    return int(match.group(1)) if match else None
