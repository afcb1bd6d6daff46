"""How to make a checkpoint again: ``fourfold quantize`` with every field of its manifest that is not the default.

What has no flag (packing, a seed of the calibration alone) only a study file can say; then it is one.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from fourfold.calibration.spec import CalibrationSpec
from fourfold.config import Options, Recipe
from fourfold.errors import FourfoldError
from fourfold.manifest import Component, Manifest
from fourfold.plugins import Registry, Role

#: In the place of what a manifest does not hold: the folder of this quantizer option, recorded by its files' hashes.
_INPUT_SCALES = "input_scales"
_INPUT_SCALES_FOLDER = "INPUT_SCALES"
_DEFAULT_RECIPE = Recipe().model_dump(mode="json")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def reproduce(manifest: Manifest, registry: Registry) -> str:
    """Markdown: the command, or the study file and its command. MODEL and FOLDER are the reader's."""
    spec = CalibrationSpec.parse(manifest.calibration.spec, where="calibration") if manifest.calibration else None
    quantizer, unfuser = _changed(manifest, registry)
    if spec is None or (spec.packing is CalibrationSpec().packing and spec.seed == manifest.seed):
        text = f"```bash\n{shlex.join(_command(manifest, quantizer, unfuser, spec))}\n```"
    else:
        text = (
            f"As `again.toml`:\n\n```toml\n{_study(manifest, quantizer, unfuser, spec)}```\n\n"
            "```bash\nfourfold study run again.toml --output FOLDER\n```"
        )
    hashes = manifest.quantizer.options.get(_INPUT_SCALES)
    if isinstance(hashes, dict):
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in hashes.items())
        text += f"\n\n`{_INPUT_SCALES_FOLDER}` holds {files}."
    return text


def _changed(manifest: Manifest, registry: Registry) -> tuple[dict[str, Any], dict[str, Any]]:
    """The quantizer's and the unfuser's options that are not their defaults; of a backend unknown here, all."""
    quantizer = _not_default(manifest.quantizer, Role.QUANTIZER, registry)
    if isinstance(quantizer.get(_INPUT_SCALES), dict):
        quantizer[_INPUT_SCALES] = _INPUT_SCALES_FOLDER
    return quantizer, _not_default(manifest.unfuser, Role.UNFUSER, registry)


def _not_default(component: Component, role: Role, registry: Registry) -> dict[str, Any]:
    try:
        options: type[Options] = registry.get(role, component.name).options
    except FourfoldError:
        return dict(component.options)
    defaults = {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}
    return {k: v for k, v in component.options.items() if k not in defaults or v != defaults[k]}


def _command(
    manifest: Manifest, quantizer: dict[str, Any], unfuser: dict[str, Any], spec: CalibrationSpec | None
) -> list[str]:
    command = ["fourfold", "quantize", "MODEL", "--output", "FOLDER", "--quantizer", manifest.quantizer.name]
    command += ["--unfuser", manifest.unfuser.name, *_pairs("--unfuser-option", unfuser)]
    command += ["--layout", _exporter(manifest), "--scheme", manifest.recipe.scheme]
    command += ["--algorithm", str(manifest.quantizer.options.get("algorithm", "max"))]
    command += _pairs("--option", {key: value for key, value in quantizer.items() if key != "algorithm"})
    command += _recipe_flags(manifest.recipe)
    if spec is not None:
        for key, value in spec.model_dump(mode="json", exclude={"packing", "seed"}, exclude_none=True).items():
            flag = "--calibration" if key == "source" else f"--{key.replace('_', '-')}"
            command += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return [*command, "--seed", str(manifest.seed)]


def _recipe_flags(recipe: Recipe) -> list[str]:
    flags = ["--targets", recipe.targets]
    for key, value in _changed_recipe(recipe, but=("scheme", "targets")).items():
        for one in value if isinstance(value, list) else [value]:
            flags += [f"--{key.replace('_', '-')}", str(one)]
    return flags


def _changed_recipe(recipe: Recipe, *, but: tuple[str, ...]) -> dict[str, Any]:
    """What is not the default, without the keys ``but``."""
    found = recipe.model_dump(mode="json", exclude=set(but))
    return {key: value for key, value in found.items() if value != _DEFAULT_RECIPE[key]}


def _pairs(flag: str, options: dict[str, Any]) -> list[str]:
    return [part for key, value in options.items() for part in (flag, f"{key}={_pair_value(value)}")]


def _pair_value(value: Any) -> str:
    """As ``KEY=VALUE`` reads it: text as it is, unless it would be taken for JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return value
    return json.dumps(value)


def _study(manifest: Manifest, quantizer: dict[str, Any], unfuser: dict[str, Any], spec: CalibrationSpec) -> str:
    recipe = manifest.recipe
    algorithm = manifest.quantizer.options.get("algorithm", "max")
    options = {key: value for key, value in quantizer.items() if key != "algorithm"}
    tables = {
        "": {"name": "again", "summary": "the same checkpoint", "model": "MODEL", "seed": manifest.seed},
        "[calibration]": spec.model_dump(mode="json", exclude_none=True),
        "[recipe]": {
            "scheme": recipe.scheme,
            "targets": recipe.targets,
            **_changed_recipe(recipe, but=("scheme", "targets")),
        },
        "[[cells]]": {
            "name": "checkpoint",
            "quantizer": {"name": manifest.quantizer.name, "algorithm": algorithm, "options": options},
            "unfuser": {"name": manifest.unfuser.name, "options": unfuser},
            "layout": _exporter(manifest),
        },
    }
    parts = [
        "\n".join([*([head] if head else []), *(f"{key} = {_toml(value)}" for key, value in table.items())])
        for head, table in tables.items()
    ]
    return "\n\n".join(parts) + "\n"


def _toml(value: Any) -> str:
    """A value in TOML, which writes all but tables as JSON does; it has no null, so such a key is left out."""
    if isinstance(value, dict):
        inside = ", ".join(
            f"{k if _BARE_KEY.fullmatch(k) else json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None
        )
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _exporter(manifest: Manifest) -> str:
    """What ``--layout`` names: the exporter, which may write a known layout under a name of its own."""
    return manifest.exporter.name if manifest.exporter else manifest.layout
