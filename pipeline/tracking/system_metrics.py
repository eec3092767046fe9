"""Record the machine's load during a training as MLflow's system metrics."""

import math

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SECONDS = 1  # between two samples


class LoadMonitor(SystemMetricsMonitor):
    """A monitor that keeps its last sample. MLflow's own drops it, so a fit of half a second would have no samples."""

    def __init__(self, uri: str, run_id: str) -> None:
        super().__init__(run_id, sampling_interval=SECONDS, resume_logging=True, tracking_uri=uri)

    def monitor(self) -> None:
        """Sample until stopped, and then once more."""
        super().monitor()
        if self._shutdown_event.is_set():
            for part in self.monitors:
                part.clear_metrics()  # a process's first CPU load is always 0
            self.collect_metrics()
            self.mlflow_logger.total_log_batch_time = math.inf  # only queue it: finish() sends it
            self.publish_metrics(self.aggregate_metrics())
