"""Download a published model from the Hugging Face hub, with the optional huggingface_hub."""

import errno
import os
import shutil
import warnings
from fnmatch import fnmatch
from pathlib import Path

# What a model folder needs. Other files of a repository, such as pickles, are not downloaded.
FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)


class HubError(OSError):
    """A model that cannot be had from the hub."""


def download(repo: str, revision: str | None = None) -> Path:
    """The folder of a hub model "owner/name", downloaded as far as it is not in the cache.

    revision: a branch ("bfloat16"), a tag or a commit; None is the main branch. After an
    interruption the next call downloads the files that are not whole yet. Without a network the
    cache alone is used; it is in ~/.cache/huggingface, or where HF_HOME says.
    Raises HubError, which says what to do next.
    """
    try:
        with warnings.catch_warnings():  # in Jupyter its bars want ipywidgets, and say so in red
            warnings.filterwarnings("ignore", "IProgress not found")
            from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise HubError(
            f"{repo!r} is not a folder, and to download it huggingface_hub must be installed: run"
            ' `python -m pip install "huggingface_hub>=1,<3"`, or check the path'
        ) from error
    name = repo if revision is None else f"{repo}@{revision}"
    page = f"{constants.ENDPOINT}/{repo}"
    _check_repository(repo, revision, name)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    # The order matters: a gated repository is a kind of one that is not found.
    except errors.GatedRepoError as error:
        if error.response.status_code == 401:
            raise HubError(
                f"{name} may only be downloaded with a token, and none (or an invalid one) was"
                f" sent: accept the licence on {page}, make a token on"
                f" {constants.ENDPOINT}/settings/tokens, then run `hf auth login` or set HF_TOKEN"
            ) from error
        raise HubError(
            f"{name} may only be downloaded after its licence has been accepted, and your token's"
            f" account has not: open {page}, accept the licence, then retry (a fine-grained token"
            " also needs the permission to read gated repositories)"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise HubError(
            f"{repo!r} must be a folder or a model on {constants.ENDPOINT}, and is neither: check"
            " the spelling; if the model is private, run `hf auth login` first"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{repo} must have the revision {revision!r}, but has not: see the branches on"
            f" {page}/tree/main, or leave the revision out"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        reason = (
            "HF_HUB_OFFLINE forbids to download it: unset that"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} does not answer: check the network, then retry"
        )
        raise HubError(
            f"{name} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}, and {reason};"
            ' load("small") needs no network'
        ) from error
    except Exception as error:  # the library lets through what its HTTP client raises
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise HubError(
                f"the disk of {constants.HF_HUB_CACHE} is full: free some of it, or set HF_HOME to"
                f" a folder on a larger disk; then retry, what is there of {name} is kept"
            ) from error
        raise HubError(
            f"the download of {name} was interrupted ({type(error).__name__}: {error}): retry, the"
            " files that are whole are kept"
        ) from error


def _check_repository(repo: str, revision: str | None, name: str) -> None:
    """Raise HubError if there are no safetensors in the repository or the disk is too small."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from tqdm import tqdm

    try:
        found = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception:  # what is wrong the download says better; it may find all in the cache
        return
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or []}
    wanted = {file for file in sizes if any(fnmatch(file, pattern) for pattern in FILES)}
    if not any(file.endswith(".safetensors") for file in wanted):
        names = ", ".join(sorted(sizes)[:8]) or "nothing"
        raise HubError(
            f"{name} must hold model*.safetensors, found {names}:"
            " other formats are not read (a pickle can run any code when it is opened); look for a"
            " revision or a copy with safetensors"
        )
    missing = 0
    for file in wanted:
        if not isinstance(try_to_load_from_cache(repo, file, revision=found.sha), str):
            missing += sizes[file]
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.resolve().parents) if os.path.exists(folder))
    free = shutil.disk_usage(place).free
    if missing > free:
        raise HubError(
            f"{name} must have {tqdm.format_sizeof(missing, 'B')} on the disk of {cache}, where"
            f" {tqdm.format_sizeof(free, 'B')} are free: free some, set HF_HOME to a folder on a"
            f' larger disk, or load a smaller revision if there is one ("{repo}@bfloat16")'
        )
