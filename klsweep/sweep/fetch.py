"""Downloading what a sweep's jobs will need, where there is a network: jobs themselves run offline."""

from collections.abc import Sequence

from klsweep.config.build import Builder, allowed
from klsweep.config.compose import Composer
from klsweep.config.grid import expand
from klsweep.errors import BadInput
from klsweep.model.source import Model

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # weights in safetensors alone, the tokenizer


def fetch(composer: Composer, overrides: Sequence[str]) -> list[tuple[str, str | None, str]]:
    """Download each model of a sweep; (name, commit, folder) of each. The plan then pins that commit.

    BadInput for a model that is neither a folder nor given by the hub.
    """
    builder, models = Builder(), dict[Model, None]()
    for cell in expand(composer, overrides, single=False).cells:
        models[builder.node(cell.config["model"], "model", allowed(cell.config["plugins"]))] = None
    return [_fetch(model) for model in models]


def _fetch(model: Model) -> tuple[str, str | None, str]:
    commit = model.pinned_revision()
    if commit is None:
        return model.path, None, model.location
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(model.path, revision=commit, allow_patterns=list(WANTED))
    except Exception as error:  # whatever the network stack raises, the user needs the same sentence
        raise BadInput(f"model.path={model.path!r} at {commit}: the hub did not give it ({error})") from error
    return model.path, commit, folder
