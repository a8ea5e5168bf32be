"""Manifests of tables and figures against the paper's numbers and fedmoe's own settings, and mistakes in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from reproduce_helpers import NAMES, TABLES, published_alone

import fedmoe.data
from experiments.reproduce.manifest import ROOT, load_manifest, names, read_manifest
from experiments.reproduce.plan import Options, flat, make_plan
from experiments.reproduce.results import Column, columns, published, published_value
from fedmoe.errors import UserError


def published_rows(section: Mapping) -> dict[str, list]:
    """The rows of a section by name, "group.row" where it has groups."""
    rows: dict[str, list] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            rows |= {f"{key}.{name}": row for name, row in value.items()}
        elif key != "columns":
            rows[key] = value
    return rows


def test_every_table_and_figure_has_a_manifest_and_a_readme() -> None:
    assert set(names()) == set(NAMES)
    for name in NAMES:
        text = (ROOT / "experiments" / name / "README.md").read_text(encoding="utf-8")
        assert f"make reproduce-{name} " in text
        assert "## Our numbers" in text


@pytest.mark.parametrize("number", TABLES)
def test_published_numbers_have_the_shape_of_their_table(number: int) -> None:
    section = published()[f"table{number}"]
    rows = published_rows(section)
    assert len(rows) >= 4
    for row in rows.values():
        assert len(row) == len(section["columns"])
        for mean, std in row:
            assert 0 < mean < 100 and 0 <= std < 20


@pytest.mark.parametrize("number", TABLES)
def test_a_table_asks_for_exactly_the_published_rows_and_columns(number: int) -> None:
    manifest = load_manifest(f"table{number}")
    section = published()[f"table{number}"]
    assert manifest.published == f"table{number}"
    assert {row.published for row in manifest.rows} == set(published_rows(section))
    assert [column.key for column in columns(manifest)] == section["columns"]
    for row in manifest.rows:
        for column, expected in zip(columns(manifest), published_rows(section)[row.published], strict=True):
            found = published_value(manifest, row, column)
            assert found is not None and [found.mean, found.std] == expected


@pytest.mark.parametrize(
    ("table", "row", "column", "mean", "std"),
    [  # read off the paper
        ("table1", "pfedmoap_lambda_0.5", "oxford_pets", 99.06, 0.09),
        ("table2", "pfedmoap", "cifar100", 53.42, 0.22),
        ("table3", "promptfl", "average", 24.48, 12.52),
        ("table4", "zero_shot_clip", "webcam", 6.20, 3.84),
        ("table6", "pfedmoap_epsilon_25", "dtd", 89.11, 0.28),
        ("table6", "pfedmoap_without_dp", "dtd", 89.13, 0.54),
        ("table6", "prompt_fedprox_without_dp", "flowers102", 66.40, 0.29),
        ("table7", "linear_projection_10_experts", "dtd", 30.42, 7.14),
        ("table8", "experts_30", "sketch", 37.01, 1.08),
        ("table9", "dim_1024", "flowers102", 98.11, 0.33),
    ],
)
def test_a_published_number_is_found_by_row_and_column(
    table: str, row: str, column: str, mean: float, std: float
) -> None:
    manifest = load_manifest(table)
    found = published_value(manifest, next(r for r in manifest.rows if r.key == row), Column(column, "", ""))
    assert found is not None and (found.mean, found.std) == (mean, std)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_table_has_the_published_settings(number: int) -> None:
    setting, training = published()["setting"][f"table{number}"], published()["setting"]["training"]
    manifest = load_manifest(f"table{number}")
    own = flat(manifest.settings)
    assert own["clip.architecture"] == setting["backbone"] and own["clip.pretrained"] == setting["pretrained"]
    for key in ("clients", "participation", "rounds"):
        assert own[f"federation.{key}"] == setting[key]
    assert own["federation.local_epochs"] == training["local_epochs"]
    assert own["optim.prompt_lr"] == training["prompt_lr"] and own["optim.gating_lr"] == training["gating_lr"]
    assert manifest.seeds == training["seeds"]
    assert own.get("partition.init_args.alpha") == setting.get("alpha")
    assert own.get("partition.init_args.clients_per_domain") == setting.get("clients_per_domain")
    config = yaml.safe_load((ROOT / "configs" / "data" / f"{manifest.data[0].key}.yaml").read_text(encoding="utf-8"))
    assert config["data"]["init_args"].get("shots", "all") == setting.get("shots", "all")


def test_the_methods_of_the_tables_have_the_published_settings(tmp_path: Path) -> None:
    training = published()["setting"]["training"]
    plan = make_plan(published_alone("table2"), Options(tmp_path, seeds=1))
    of = {cell.row.key: cell.runs[0].settings for cell in plan.cells}
    gate = {key: of["pfedmoap"][f"method.init_args.{key}"] for key in ("heads", "gating_dim", "lmbda")}
    assert gate == {
        "heads": training["gating_heads"],
        "gating_dim": training["gating_dim"],
        "lmbda": training["lambda"],
    }
    assert of["coop"]["method.init_args.epochs"] == training["coop_epochs"]
    assert of["promptfl"]["prompt.length"] == training["prompt_length"]


def test_without_privacy_is_the_setting_of_table_1(tmp_path: Path) -> None:
    plans = {name: make_plan(published_alone(name), Options(tmp_path, seeds=1)) for name in ("table1", "table6")}
    of = {name: {run.name: run.settings for run in plan.runs} for name, plan in plans.items()}
    for row, same in (
        ("promptfl", "promptfl"),
        ("prompt_fedprox", "prompt_fedprox"),
        ("pfedmoap", "pfedmoap_lambda_0.5"),
    ):
        assert of["table6"][f"{row}_without_dp-dtd-seed0"] == of["table1"][f"{same}-dtd-seed0"]


def test_the_published_sizes_are_those_of_the_data_sets() -> None:
    adapters = {c.name: c for c in vars(fedmoe.data).values() if getattr(c, "published", None) is not None}
    assert len(published()["datasets"]) == 9
    for name, (train, test, classes, *_) in published()["datasets"].items():
        facts = adapters[name].published
        assert (facts.train, facts.test, facts.classes) == (train, test, classes)


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_every_preset_is_a_valid_command(name: str, tmp_path: Path) -> None:
    presets = load_manifest(name).presets
    assert "embedded" in presets
    for preset in (None, *presets):
        manifest = load_manifest(name, preset)
        if manifest.axis is not None:  # first and last place stand for the others
            manifest = replace(manifest, axis=replace(manifest.axis, values=manifest.axis.values[:: 10**9]))
        # Every row on one data set, and one row on the others; make_plan parses each command, or raises.
        plan = make_plan(replace(manifest, data=manifest.data[:1]), Options(tmp_path, seeds=1))
        assert not plan.pending()  # a misspelt method or setting would be among them
        assert plan.runs and len({run.name for run in plan.runs}) == len(plan.runs)
        if preset is None:
            assert not [cell for cell in plan.cells if cell.state == "left out"]
        if plan.runs and manifest.data[1:]:
            row = next(cell.row for cell in plan.cells if cell.runs)
            one = replace(manifest, data=manifest.data[1:], rows=(row,), controls=())
            others = make_plan(one, Options(tmp_path, seeds=1))
            assert len(others.runs) == len(manifest.data[1:]) * len(manifest.axis.values if manifest.axis else (0,))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("kind: table", "kind: chart"), "kind is 'chart'; valid is table, curves, attention."),
        (("seeds: 3", "seed: 3"), "seed is not known; .* did you mean 'seeds'?"),
        (("label: CoOp,", "lable: CoOp,"), "label is None; valid is a text."),
        (("      coop: {settings", "      cop: {settings"), "rows.cop is no row of the manifest"),
    ],
)
def test_a_mistake_in_a_manifest_is_named(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    text = (ROOT / "experiments" / "table2" / "manifest.yaml").read_text(encoding="utf-8")
    assert change[0] in text
    path = tmp_path / "manifest.yaml"
    path.write_text(text.replace(change[0], change[1], 1), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        read_manifest(path, "tiny-cifar" if "rows" in sentence else None)


def test_an_unknown_name_or_preset_is_named() -> None:
    with pytest.raises(UserError, match=r"'table5' is no table or figure; .*did you mean"):
        load_manifest("table5")
    with pytest.raises(UserError, match="did you mean 'embedded'"):
        load_manifest("table2", "embeded")


def test_a_value_that_an_option_does_not_have_yet_is_pending(tmp_path: Path) -> None:
    manifest = load_manifest("table2")
    odd = replace(manifest.rows[-1], settings={"method": {"init_args": {"assignment": "oldest"}}})
    plan = make_plan(replace(manifest, rows=(odd,), controls=()), Options(tmp_path, seeds=1))
    assert plan.pending() == {"pFedMoAP": "PFedMoAP has no assignment oldest yet"}
    assert plan.runs == []
