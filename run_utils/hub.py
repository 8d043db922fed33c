"""The Hugging Face hub: whether it can be reached, and uploads."""

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from run_utils.errors import UserError, one_line
from run_utils.paths import did_you_mean


def push(folder, repo_id):
    """Upload a folder. Raises UserError with the hub's reason. The folder stays."""
    try:
        HfApi().create_repo(repo_id, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(
            f"{folder} is complete, but could not be uploaded to {repo_id} ({type(error).__name__}): {reason}"
        ) from None
    print(f"On the hub: {HfApi().endpoint}/{repo_id}")


def check_hub_access(repo_id, repo_type, revision=None):
    """Ask the hub once before a download. Raises UserError with the hub client's reason.

    Without this, an unreachable hub costs half a minute of retries. In offline mode
    (HF_HUB_OFFLINE=1) the cache is used and the hub is not asked."""
    if constants.is_offline_mode():
        return
    try:
        HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=10)
        HfApi().auth_check(repo_id, repo_type=repo_type)
    except GatedRepoError as error:
        raise UserError(
            f"{repo_id} is gated: accept its conditions at {constants.ENDPOINT}/"
            f"{'datasets/' * (repo_type == 'dataset')}{repo_id}, then `hf auth login` or set HF_TOKEN "
            f"({type(error).__name__})"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"no {repo_type} {repo_id}{f' at revision {revision}' * bool(revision)} on the hub, or it is private and "
            f"needs `hf auth login` ({type(error).__name__}); for a local folder or file give its path"
            f"{did_you_mean(repo_id)}"
        ) from None
    except Exception as error:  # the transport's own errors have no public class in common
        raise UserError(
            f"cannot reach {constants.ENDPOINT} for {repo_id} ({type(error).__name__}); "
            f"if it is in the local cache already, set HF_HUB_OFFLINE=1{did_you_mean(repo_id)}"
        ) from None
