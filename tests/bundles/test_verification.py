"""MONAI's own checks on the shipped bundles, at their real size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser
from small_bundles import BUNDLES, NAMES, config

SCHEMA = Path(__file__).parents[1] / "data" / "bundle_schema.json"
pytestmark = [
    pytest.mark.slow,
    # MONAI says these of any configuration and of any schema that is not downloaded anew.
    pytest.mark.filterwarnings("ignore:parsing config_file"),
    pytest.mark.filterwarnings("ignore:No hash value provided"),
]
every = pytest.mark.parametrize("name", NAMES)


def files(name: str) -> dict[str, str]:
    folder = BUNDLES / name / "configs"
    return {
        "config_file": str(folder / "inference.json"),
        "meta_file": str(folder / "metadata.json"),
    }


@every
def test_verify_metadata(name: str, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"  # a file that is there already is not downloaded
    shutil.copyfile(SCHEMA, schema)
    monai.bundle.verify_metadata(meta_file=files(name)["meta_file"], filepath=str(schema))
    wrong = tmp_path / "metadata.json"
    content = config(name, "metadata")
    del content["network_data_format"]
    wrong.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="network_data_format"):
        monai.bundle.verify_metadata(meta_file=str(wrong), filepath=str(schema))


@every
def test_verify_net_in_out(name: str) -> None:
    monai.bundle.verify_net_in_out(net_id="network_def", device="cpu", **files(name))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # outputs are compared instead
@every
def test_trace_gives_what_the_network_gives(name: str, tmp_path: Path) -> None:
    """With the shipped weights where there are any, else with those of a new network."""
    parser = ConfigParser()
    parser.read_config(files(name)["config_file"])
    network = parser.get_parsed_content("network_def").eval()
    weights = BUNDLES / name / "models" / "model.pt"
    if weights.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:
        weights = tmp_path / "model.pt"
        torch.save(network.state_dict(), weights)
    content = config(name, "inference")
    shape = [1, len(content["channels"]), *content["spatial_shape"]]
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(weights),
        use_trace=True,
        input_shape=shape,
        **files(name),
    )
    traced = torch.jit.load(str(tmp_path / "model.ts"), map_location="cpu")
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(traced(image), network(image), atol=1e-3, rtol=1e-3)
