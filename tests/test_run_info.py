"""What is known of a run beside its numbers."""

import json
import re

from vitjax import run_info


def test_run_info(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/someone/bin/prog", "--config=a b"])
    info = json.loads(json.dumps(run_info.run_info()))
    assert {"python", "vitjax", "jax", "numpy"} <= set(info["versions"])
    assert info["devices"] == [{"platform": "cpu", "kind": "cpu", "count": info["devices"][0]["count"]}]
    assert "/home" not in info["command"] and info["command"].endswith("'--config=a b'")
    assert info["git"] is None or re.fullmatch("[0-9a-f]{40}", info["git"]["revision"])
    run_info.write_run_info(tmp_path, info | {"started": "first"})
    run_info.write_run_info(tmp_path, info | {"started": "second", "wall_time": {"step": 1.0}})
    assert run_info.read_run_info(tmp_path) == info | {"started": "first", "wall_time": {"step": 1.0}}
