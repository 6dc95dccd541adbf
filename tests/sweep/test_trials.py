"""From sweep files to trials: names, the paper's counts, big_vision's form, and every refusal."""

import collections
import json
import pathlib
import textwrap

import pytest

from vitjax.errors import UserError
from vitjax.sweep import trials
from vitjax.sweep.folder import Folder
from vitjax.sweep.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quickstart.py")
AUGREG = str(ROOT / "configs/augreg.py")


def sweep_file(folder, points, config=QUICK, seeds="(0,)", more=""):
    path = folder / "s.py"
    path.write_text(
        "from vitjax.sweep import grid\n"
        "def get_sweep(arg=None):\n"
        f"    return grid.Sweep(config={config!r}, points={points}, seeds={seeds}, {more})\n"
    )
    return str(path)


def read(folder, *args, **kwargs):
    return trials.read(sweep_file(folder, *args, **kwargs))


@pytest.mark.parametrize(("data", "epochs"), [("i1k-300", 300), ("i21k-30", 30), ("i21k-300", 300)])
def test_the_papers_grid_has_252_trials_for_each_data_setting(data, epochs):
    plan = trials.read(f"{ROOT}/configs/sweeps/augreg.py:data={data}")
    assert len(plan.trials) == 252  # 756 in three settings, as in the paper
    counted = collections.Counter()
    for trial in plan.trials.values():
        counted.update((axis, value) for axis, value in trial.axes.items())
        assert f"epochs={epochs}" in trial.config and f"data={data.split('-')[0]}" in trial.config
    number = collections.Counter(axis for axis, _ in counted)
    assert number == {"model": 9, "aug": 7, "reg": 2, "wd": 2}
    # Every setting differs from every other in what determines the parameters.
    assert len({trial.fingerprint for trial in plan.trials.values()}) == 252


def test_a_trial_of_the_papers_grid_is_that_of_the_paper():
    plan = trials.read(
        f"{ROOT}/configs/sweeps/augreg.py:models=vit_s16,augs=light1,regs=0.1,wds=0.03,seeds=2"
    )
    assert list(plan.trials) == [f"vit_s16-aug_light1-reg_0.1-wd_0.03-seed_{seed}" for seed in (0, 1)]
    trial = plan.trials["vit_s16-aug_light1-reg_0.1-wd_0.03-seed_1"]
    config = trial.load()
    assert (config.model.name, config.model.dropout, config.model.drop_path) == ("vit_s16", 0.1, 0.1)
    assert "randaug(2, 0" in config.input.pp and "mixup" not in config.input.pp
    assert (config.wd, config.seed, config.total_epochs, config.report) == (0.03 * 1e-3, 1, 300, False)
    assert trial.group == "vit_s16-aug_light1-reg_0.1-wd_0.03"


def test_names_stay_when_an_axis_gets_more_values(tmp_path):
    few = read(tmp_path, "grid.keys({'lr': (1e-3,), 'model.pool': ('gap',)})")
    many = read(tmp_path, "grid.keys({'lr': (1e-3, 3e-3), 'model.pool': ('gap', 'tok')})", seeds="(0, 1)")
    assert list(few.trials) == ["lr_0.001-model.pool_gap-seed_0"]
    assert set(few.trials) < set(many.trials) and len(many.trials) == 8
    same = "lr_0.001-model.pool_gap-seed_0"
    assert few.trials[same] == many.trials[same]


def test_names_are_file_names(tmp_path):
    plan = read(
        tmp_path, "grid.args(data=('folder:/data/my photos',), train=('train[:90%]',))", config=AUGREG
    )
    (name,) = plan.trials
    assert name == "data_folder_data_my_photos-train_train_90_-seed_0"
    assert plan.trials[name].load().input.data == "folder:/data/my photos"
    long = "grid.keys({'lr_mults': ([('" + "x" * 200 + "', 1.0)], [('" + "x" * 200 + "', 2.0)])})"
    names = list(read(tmp_path, long).trials)
    assert len(set(names)) == 2 and all(len(name.encode()) < 200 for name in names)


def test_seeds_come_round_by_round(tmp_path):
    plan = read(tmp_path, "grid.keys({'lr': (1e-3, 3e-3)})", seeds="(3, 1)")
    assert [trial.seed for trial in plan.trials.values()] == [3, 3, 1, 1]
    assert plan.trials["lr_0.001-seed_3"].group == plan.trials["lr_0.001-seed_1"].group == "lr_0.001"


def test_big_visions_form(tmp_path):
    (tmp_path / "c.py").write_text(
        textwrap.dedent(f"""
        from configs import common as bvcc
        from vitjax import config as config_lib

        def get_config(arg=None):
            return config_lib.load({AUGREG!r} + (":" + arg if arg else "")).copy_and_resolve_references()

        def sweep(add, arg=None):
            for lr in (1e-3, 3e-3):
                add(lr=lr, wd=0.1 * lr, **{{"input.batch_size": 256}}, **bvcc.arg(res=448, aug=arg or "none"))
            add(seed=5, config_arg="vit_b16,res=384")
        """)
    )
    plan = trials.read(f"{tmp_path}/c.py:light1")
    first, _, last = plan.trials.values()
    assert first.name == "res_448-aug_light1-lr_0.001-wd_0.0001-input.batch_size_256"
    assert first.axes == {"res": 448, "aug": "light1", "lr": 1e-3, "wd": 1e-4, "input.batch_size": 256}
    assert first.config == f"{tmp_path}/c.py:res=448,aug=light1"
    config = first.load()
    assert (config.lr, config.input.batch_size, first.seed) == (1e-3, 256, 0)
    assert "inception_crop(448)" in config.input.pp
    assert (last.seed, last.group, last.load().model.name) == (5, "vit_b16-res_384", "vit_b16")


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ("grid.keys({'lrr': (1e-3,)})", {}, "unknown config key 'lrr'.*Did you mean 'lr'"),
        ("grid.keys({'imput.batch_size': (8,)})", {}, "no config section 'imput'.*Did you mean 'input'"),
        ("grid.keys({'lr': ('fast',)})", {}, "lr=.*expected float"),
        ("grid.args(agu=('none',))", {"config": AUGREG}, "unknown argument 'agu'.*Did you mean 'aug'"),
        ("grid.args(aug=('nome',))", {"config": AUGREG}, "unknown aug 'nome'.*Did you mean 'none'"),
        ("grid.args(aug=('none',))", {}, "takes no argument"),
        ("grid.args(train=('a,b',))", {"config": AUGREG}, "cannot hold a comma"),
        ("grid.keys({'lr': (1e-3, 0.001)})", {}, "gives trial 'lr_0.001-seed_0' twice"),
        ("grid.args(data=('folder:a/b', 'folder:a b'))", {"config": AUGREG}, "share the folder.*a/b.*a b"),
        ("grid.args(data=('folder:A', 'folder:a'))", {"config": AUGREG}, "share the folder"),
        ("grid.keys({'lr': (1e-3,)})", {"more": "where=lambda lr: False"}, "gives no trials"),
        ("grid.keys({'lr': (1e-3,)})", {"seeds": "()"}, "axis 'seed' has no values"),
        ("grid.keys({'lr': (object(),)})", {}, "not JSON serializable"),
        ("grid.keys({'lr': (1e-3,)})", {"config": "configs/nothing.py"}, "no config file"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(tmp_path, capsys, points, options, message):
    path = sweep_file(tmp_path, points, **options)
    with pytest.raises(UserError, match=message):
        trials.read(path)
    assert main(["run", "--sweep", path, "--workdir", str(tmp_path / "w")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "w").exists()


def test_a_nested_key_that_nothing_reads_is_refused(tmp_path):
    plan = read(tmp_path, "grid.keys({'model.drop_paht': (0.1,)})")
    with pytest.raises(UserError, match=r"drop_paht.*Did you mean 'drop_path'"):
        trials.check_unset_keys(plan.trials.values())


def test_set_keys_need_no_second_look(tmp_path, monkeypatch):
    monkeypatch.setattr(trials.subprocess, "run", lambda *a, **k: pytest.fail("built a config by shape"))
    trials.check_unset_keys(read(tmp_path, "grid.keys({'model.depth': (1, 2)})").trials.values())


def test_a_changed_grid_is_refused_in_a_used_folder(tmp_path):
    folder = Folder(tmp_path / "w")
    plan = lambda lrs, **more: read(tmp_path, f"grid.keys({{'lr': {lrs}}})", **more)
    folder.settle(plan((1e-3, 3e-3)))
    # Another interval of logging changes no parameter, so the trials are the same.
    folder.settle(plan((1e-3, 3e-3), more="overrides={'log_training_steps': 7}"))
    folder.settle(plan((1e-3, 3e-3)))
    before = (tmp_path / "w/sweep.json").read_text()
    with pytest.raises(UserError, match=r"1 added \(lr_0.01-seed_0\)\. Give --extend to add them"):
        folder.settle(plan((1e-3, 3e-3, 1e-2)))
    with pytest.raises(UserError, match=r"1 removed \(lr_0.003-seed_0\)\. Set the sweep file back"):
        folder.settle(plan((1e-3,)), extend=True)
    with pytest.raises(UserError, match=r"2 changed \(lr_0.001-seed_0, lr_0.003-seed_0\)"):
        folder.settle(plan((1e-3, 3e-3), more="overrides={'wd': 0.3}"), extend=True)
    assert (tmp_path / "w/sweep.json").read_text() == before
    folder.settle(plan((1e-3, 3e-3, 1e-2)), extend=True)
    assert list(folder.read().trials) == [f"lr_{lr}-seed_0" for lr in (0.001, 0.003, 0.01)]
    assert folder.read().trials == plan((1e-3, 3e-3, 1e-2)).trials


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--sweep", "s.py"], "--workdir"),
        (["status", "--workdir", "nothing"], "holds no sweep"),
        (["run", "--sweep", "s.py", "--workdir", "w", "--index", "4/4"], "0 <= I < N"),
        (["run", "--sweep", "s.py", "--workdir", "w", "--parallel", "0"], "1 or more"),
        (["run", "--sweep", "s.py", "--workdir", "w", "--slurm", "time=1"], "--executor slurm"),
        (["run", "--sweep", "s.py", "--workdir", "gs://b/w"], "folder of this machine"),
        (["runn"], "invalid choice"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    sweep_file(tmp_path, "grid.keys({'lr': (1e-3,)})")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", [None, "../outside", ".lock"])
def test_a_foreign_record_is_refused(tmp_path, name):
    about = dict(config=QUICK, overrides={}, axes={}, seed=0, group="g")
    (tmp_path / "sweep.json").write_text(
        json.dumps({"sweep": "s.py", "name": "s", "trials": {name: about} if name else []})
    )
    with pytest.raises(UserError, match="is not the record of a sweep"):
        Folder(tmp_path).read()


def test_list_names_every_trial(tmp_path, capsys):
    path = sweep_file(tmp_path, "grid.args(aug=('none', 'light1'))", config=AUGREG)
    assert main(["list", "--sweep", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["aug_none-seed_0", "aug_light1-seed_0", "2"]
    assert f"{AUGREG}:aug=none" in lines[0]
