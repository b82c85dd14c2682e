"""What users call: the command line and the entry points of the bundles.

Libraries below that report their use are told not to, unless the user has set it otherwise.
"""

import os

SILENT = {
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name, _value in SILENT.items():
    os.environ.setdefault(_name, _value)
