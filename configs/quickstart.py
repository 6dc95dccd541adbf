"""A small Vision Transformer on handwritten digits: under three minutes on a two-core laptop, no download.

The 1,797 digits of scikit-learn (8x8 pixels), 80 % for training and 20 % held out. The recipe is AugReg's in
miniature: Adam with decoupled weight decay, warm-up and cosine, gradient clipping, sigmoid loss, random crops
and mixup.

    python -m vitjax.main --config configs/quickstart.py --workdir runs/quickstart
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config; everything in it can be overridden by `--config.key=value`."""
    config = ConfigDict()
    config.seed = 0
    config.total_epochs = 40
    config.num_classes = 10

    to_model = (
        "value_range(-1, 1)|onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"
    )
    config.input = dict(
        data="digits",
        split="train",
        batch_size=64,
        pp=f"decode|resize(18)|random_crop(16)|{to_model}|mixup(0.2)",
    )
    # 16 patches of 4x4 pixels. The bias makes every label improbable at first, as one of ten should be.
    config.model = dict(name="vit_mu4", width=64, depth=4, num_heads=4, pool="gap", head_bias=-2.3)
    config.task = dict(name="classify", loss="sigmoid_xent")

    config.optax_name = "scale_by_adam"
    config.lr = 2e-3
    config.wd = 1e-4
    config.schedule = dict(decay_type="cosine", warmup_percent=0.1)
    config.grad_clip_norm = 1.0

    config.evals = dict(
        val=dict(
            type="accuracy",
            data="digits",
            split="test",
            pp=f"decode|resize(18)|central_crop(16)|{to_model}",
            log_epochs=5,
        )
    )
    config.best_metric = "val/prec@1"
    config.log_training_steps = 20
    config.ckpt_epochs = 5
    return config
