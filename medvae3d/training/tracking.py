"""Runs in MLflow, through MONAI's handler: a file beside the learning curves, and no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.handlers import MLFlowHandler
from monai.utils import optional_import

from medvae3d.errors import SettingError

SQLITE = "sqlite:///"
EXPERIMENT = "medvae3d"


class MLFlowHandlerWithPictures(MLFlowHandler):
    """MONAI's handler for an evaluator, which logs the pictures of each validation as well.

    MONAI's own ``artifacts`` would log the whole folder anew after each validation.

    Args:
        pictures: Folder that `SampleGrid` writes into.
        options: See MONAI's handler.
    """

    def __init__(self, pictures: str, **options: Any) -> None:
        super().__init__(**options)
        self.pictures = Path(pictures)

    def epoch_completed(self, engine: Any) -> None:
        """Logs the metrics, then what was drawn for them, below ``grids``."""
        super().epoch_completed(engine)
        run: Any = self.cur_run
        for picture in sorted(self.pictures.glob(f"*_epoch{engine.state.epoch:04d}.png")):
            self.client.log_artifact(run.info.run_id, str(picture), "grids")


def mlflow_log(
    uri: str, run: str, every_steps: int = 0, pictures: str | None = None
) -> MLFlowHandler:
    """A handler that logs to MLflow: terms of a trainer, or the metrics of an evaluator.

    A run that was interrupted goes on in MLflow too: the handlers of trainer and evaluator find
    the open run of their name, which the trainer closes at its end.

    Args:
        uri: Where runs are kept, such as ``sqlite:///eval/mlflow.db``, whose folder is made. The
            variable ``MLFLOW_TRACKING_URI`` comes first.
        run: Folder of the run, whose name it gets.
        every_steps: Steps from one logged step of a trainer to the next; 0 for an evaluator.
        pictures: Folder of the pictures that an evaluator draws, if they are to be logged.

    Raises:
        SettingError: If MLflow is not installed.
    """
    if not optional_import("mlflow")[1]:
        raise SettingError(
            "mlflow is true, but MLflow is not installed. Install it with "
            "`pip install 'medvae3d[mlflow]'`, or leave mlflow=true out."
        )
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)

    def is_logged(engine: Any, step: int) -> bool:
        return step % every_steps == 0

    is_trainer = every_steps > 0
    options: dict[str, Any] = {
        "tracking_uri": uri,
        "iteration_log": is_logged if is_trainer else False,
        "epoch_log": not is_trainer,
        "output_transform": lambda output: output,
        "experiment_name": EXPERIMENT,
        "run_name": Path(run).resolve().name,
        "close_on_complete": is_trainer,
    }
    if pictures is not None:
        return MLFlowHandlerWithPictures(pictures, **options)
    return MLFlowHandler(**options)
