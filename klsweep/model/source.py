"""Which model a run starts from: a folder or a Hugging Face name, and the content that identifies it. No torch."""

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from klsweep.component import component
from klsweep.errors import BadInput

SHIPPED = {"klsweep/tiny": Path(__file__).parent / "tiny"}
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
REFUSALS = {  # what the hub's errors ask for
    "GatedRepoError": "it is gated: accept its licence on the hub and log in with `hf auth login`",
    "RevisionNotFoundError": "it has no such revision",
    "RepositoryNotFoundError": "it has no such repository, or it is private: `hf auth login`",
}
_CONTENT_FILES = ("config.json", "*.safetensors", "tokenizer.json", "tokenizer_config.json")


@component
class Model:
    """The model node: where the base policy and the reference come from, in which precision they run, and what is held
    in memory: where the reference is (`klsweep.model.reference`), how many tokens' logits exist at a time, and whether
    a layer's activations are kept for the backward pass or computed again.

    `template` is how it is asked: null, the prompt as it is; ``tokenizer``, the tokenizer's own chat template; else
    the text of one (Jinja over `messages`). `system` is the system message, null for the template's own.
    """

    path: str
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    device: Literal["auto", "cpu", "cuda"]
    reference: Literal["device", "offload", "adapter_base"]
    logprob_chunk: PositiveInt
    gradient_checkpointing: bool
    template: str | None
    system: str | None

    def __post_init__(self) -> None:
        if self.system is not None and self.template is None:
            raise ValueError(f"model.system={self.system!r} needs a chat template (model.template=tokenizer)")

    @property
    def location(self) -> str:
        """What transformers is given: a local folder if there is one, else a hub name."""
        if self.path in SHIPPED:
            return str(SHIPPED[self.path])
        return str(Path(self.path).expanduser()) if is_folder(self.path) else self.path

    def content(self) -> str:
        """What was in it, never where it lay: a hash of the weights, or the hub commit. BadInput if there is none."""
        commit = self.pinned_revision()
        return f"sha256:{_folder_hash(self.location)}" if commit is None else f"hub:{self.path}@{commit}"

    def pinned_revision(self) -> str | None:
        """The hub commit that `revision` stands for today, None for a folder. BadInput if there is no such model."""
        if self.path in SHIPPED or is_folder(self.path):
            return None
        if not _HUB_NAME.fullmatch(self.path):
            raise BadInput(
                f"model.path={self.path!r}: no such folder (a local HF folder, a hub name 'owner/model', or "
                f"one of {', '.join(SHIPPED)})"
            )
        return _hub_commit(self.path, self.revision)

    def template_text(self) -> str | None:
        """The text of the chat template, None if there is none. BadInput if it is the tokenizer's and that has none."""
        return (
            _tokenizer_template(self.location, self.pinned_revision())
            if self.template == "tokenizer"
            else self.template
        )

    def template_id(self) -> str | None:
        """A hash of the chat template's text, None without one: what identities and results carry."""
        text = self.template_text()
        return None if text is None else f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def check_room(self, name: str, response_tokens: int) -> None:
        """BadInput if responses alone take all positions that its configuration names; the prompts' are not looked at.

        `name`: the node whose `max_response_tokens` these are.
        """
        positions = _positions(self.location, self.pinned_revision())
        if positions is not None and response_tokens >= positions:
            raise BadInput(
                f"{name}.max_response_tokens={response_tokens}: model.path={self.path!r} has positions for {positions} "
                "tokens, those of the prompt included"
            )

    def is_cached(self) -> bool:
        """True if a compute node without a network can load it: a folder, or every weight file in the local cache."""
        if self.path in SHIPPED or is_folder(self.path):
            return True
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(self.path, revision=self.revision, local_files_only=True))
        except Exception:  # whatever it raises, the files are not there
            return False
        index = folder / "model.safetensors.index.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        return all((folder / name).exists() for name in (*names, "config.json"))


def is_folder(path: str) -> bool:
    """True if the path is an existing local folder."""
    return Path(path).expanduser().is_dir()


@lru_cache(maxsize=64)
def _folder_hash(folder: str) -> str:
    files = sorted({f for pattern in _CONTENT_FILES for f in Path(folder).glob(pattern)})
    if not any(f.suffix == ".safetensors" for f in files):
        raise BadInput(f"model.path={folder!r}: the folder holds no *.safetensors weights")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=64)
def _tokenizer_template(location: str, commit: str | None) -> str:
    """The chat template that comes with a tokenizer: a file of its own, or an entry of the tokenizer's settings."""
    if file := _small_file(location, commit, "chat_template.jinja"):
        return file.read_text(encoding="utf-8")
    file = _small_file(location, commit, "tokenizer_config.json")
    found = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file else None
    if isinstance(found, list):  # several, by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if not found:
        raise BadInput(f"model.template=tokenizer: the tokenizer of model.path={location!r} has no chat template")
    return found


@lru_cache(maxsize=64)
def _positions(location: str, commit: str | None) -> int | None:
    """Most tokens that a model has positions for, None if its configuration does not say."""
    file = _small_file(location, commit, "config.json")
    return json.loads(file.read_text(encoding="utf-8")).get("max_position_embeddings") if file else None


def _small_file(location: str, commit: str | None, name: str) -> Path | None:
    """A file of a model, from the hub if it is not in the local cache; None if the model has no such file."""
    if commit is None:
        file = Path(location) / name
        return file if file.is_file() else None
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(location, name, revision=commit))
    except EntryNotFoundError:  # offline, of a file that is not in the cache, too
        return None


@lru_cache(maxsize=64)
def _hub_commit(name: str, revision: str | None) -> str:
    """The commit that a hub revision stands for: from the local cache, else from the hub."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    try:
        commit = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=10).sha
    except Exception as error:  # whatever the network stack raises, the user needs the same sentence
        kind = type(error).__name__
        raise BadInput(
            f"model.path={name!r} (revision {revision or 'main'}): no such folder, not in the local Hugging Face "
            f"cache, and the hub did not give it ({REFUSALS.get(kind, kind)})"
        ) from error
    return str(commit)
