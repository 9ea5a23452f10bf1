"""Hydra's Compose API and override grammar, with errors in one line."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from klsweep.config.plugins import conf_folder
from klsweep.errors import BadInput

CONF = Path(__file__).resolve().parent.parent / "conf"


@dataclass(frozen=True)
class Composed:
    """A composed configuration before interpolation, and the choice taken in each group."""

    config: dict[str, Any]
    choices: dict[str, str]


class Composer:
    """One Hydra session over the shipped `conf/` and, beside it, a folder of the user's and those of plugins."""

    def __init__(self, config_dir: Path | None = None) -> None:
        if config_dir is not None and not config_dir.is_dir():
            raise BadInput(f"--config-dir={str(config_dir)!r}: no such folder")
        self._folders: dict[str, Path] = {}  # by what names them, in errors
        if config_dir is not None:
            self._search("--config-dir", config_dir.resolve())
        self._loader = GlobalHydra.instance().config_loader()
        self._groups = frozenset(self._loader.list_groups("")) - {"hydra"}  # slow in Hydra: asked once

    def _search(self, name: str, folder: Path) -> None:
        """Search a folder from now on. BadInput for a file of a name that is taken: Hydra would silently take one."""
        for file in sorted(folder.glob("*.yaml")) + sorted(folder.glob("*/*.yaml")):
            for taken, other in (("a shipped file", CONF), *((f"one of {n}", f) for n, f in self._folders.items())):
                if (other / file.relative_to(folder)).exists():
                    raise BadInput(f"{name}: {file.relative_to(folder)} has the name of {taken}: rename it")
        self._folders[name] = folder

    def admit_plugins(self, overrides: Sequence[Override]) -> None:
        """Search the conf/ of the plugins that the overrides name, or else the experiment that they choose.

        BadInput for a plugin that cannot be imported.
        """
        for plugin in self._plugins(overrides):
            name = f"plugins=[{plugin}]"
            if name not in self._folders and (folder := conf_folder(plugin)) is not None:
                self._search(name, folder)

    def _plugins(self, overrides: Sequence[Override]) -> list[str]:
        given = {o.key_or_group: o for o in overrides}
        if "plugins" in given and given["plugins"].is_sweep_override():
            raise BadInput("plugins: cannot be swept (several packages: plugins=[mylab,other.lab])")
        named = given["plugins"].value() if "plugins" in given else None
        if "plugins" not in given and "experiment" in given:
            named = self._plugins_of(given["experiment"].value())
        return [each for each in named if isinstance(each, str)] if isinstance(named, list) else []

    def _plugins_of(self, experiment: Any) -> Any:
        """What an experiment's file says of plugins: it is needed before Hydra can compose the file."""
        files = [folder / "experiment" / f"{experiment}.yaml" for folder in (CONF, *self._folders.values())]
        try:
            found = [yaml.safe_load(file.read_text()) for file in files if file.is_file()]
        except yaml.YAMLError:  # composition will say so
            return None
        return next((content.get("plugins") for content in found if isinstance(content, dict)), None)

    def options(self, group: str) -> list[str]:
        """Choices of a group, sorted."""
        # the search path takes effect through composition only
        own = {file.stem for folder in self._folders.values() for file in (folder / group).glob("*.yaml")}
        return sorted(own | set(self._loader.get_group_options(group, ObjectType.CONFIG)))

    def is_group(self, key: str) -> bool:
        """True if overriding `key` means choosing from a group."""
        return key in self._groups

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Compose with plain Hydra. Raises BadInput with field, value and choices."""
        parsed = parse_overrides(overrides)
        self.admit_plugins(parsed)
        search = ",".join(f"'file://{folder}'" for folder in self._folders.values())
        try:
            config = compose("config", overrides=[f"hydra.searchpath=[{search}]", *overrides], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            self._explain(parsed)
            raise BadInput(" ".join(str(error).split())) from error
        choices = dict(config.hydra.runtime.choices)
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        plain.pop("hydra")
        kept = {str(k): str(v) for k, v in choices.items() if "/" not in str(k) and v is not None}
        return Composed({str(k): v for k, v in plain.items()}, kept)

    def _explain(self, parsed: Sequence[Override]) -> None:
        """Raise the exact complaint about the first override that is at fault, if one is."""
        for override in parsed:
            if self.is_group(override.key_or_group) and override.package is None:
                self.check_choice(override.key_or_group, override.value())
        chosen = [o.input_line for o in parsed if self.is_group(o.key_or_group) and o.input_line]
        config = self.compose(chosen).config if len(chosen) < len(parsed) else {}
        for override in parsed:
            if not self.is_group(override.key_or_group) and override.type == OverrideType.CHANGE:
                check_key(config, override.key_or_group)

    def check_choice(self, group: str, value: Any) -> None:
        """BadInput unless `value` is a choice of `group`."""
        options = self.options(group)
        if value not in options:
            raise BadInput(f"{group}={value!r}: choose from {', '.join(options)}")


@contextmanager
def composer(config_dir: Path | None = None) -> Iterator[Composer]:
    """A Hydra session; one at a time in a process."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield Composer(config_dir)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own grammar. Raises BadInput naming the override that does not parse."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException as error:
            if text.endswith(","):
                raise BadInput(f"override {text!r}: no value after the last comma (a list has no spaces)") from error
            reason = str(error).splitlines()[0]
            raise BadInput(f"override {text!r}: {reason} (expected key=value)") from error
    return parsed


def sweep_values(override: Override, composer: Composer) -> list[Any]:
    """The typed values an override stands for: one, or those of a sweep (list, choice, range, glob)."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        glob = override.value()
        assert isinstance(glob, Glob)
        options = composer.options(override.key_or_group)
        if not (chosen := glob.filter(options)):
            raise BadInput(f"{override.input_line}: matches none of {', '.join(options)}")
        return chosen
    if not override.is_discrete_sweep():
        raise BadInput(f"{override.input_line}: an interval is no list of values (use a,b,c or range(a,b,step))")
    parser = OverridesParser.create()
    texts = override.sweep_string_iterator()
    return [parser.parse_override(f"{override.key_or_group}={text}").value() for text in texts]


def check_key(config: dict[str, Any], key: str) -> None:
    """BadInput unless the dotted key exists in the configuration."""
    node: Any = config
    for depth, part in enumerate(key.split(".")):
        if not isinstance(node, dict) or part not in node:
            parent = ".".join(key.split(".")[:depth])
            names = [k for k in node if k != "_target_"] if isinstance(node, dict) else []
            near = difflib.get_close_matches(part, names, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadInput(f"{key}: unknown key ({hint}keys of {parent or 'the configuration'}: {', '.join(names)})")
        node = node[part]


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in interpolations, and refuse what is still missing."""
    tree: DictConfig = OmegaConf.create(config)
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise BadInput(f"{error.full_key}: has no default: give it a value") from error
    except OmegaConfBaseException as error:
        raise BadInput(" ".join(str(error).split())) from error
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
