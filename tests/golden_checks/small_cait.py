"""The official small-dataset CaiT (aanna0701/SPT_LSA_ViT): forward and gradients."""

from golden_checks import checks
from golden_checks.small_vit import compare_release, release
from vitjax.models.small import NETWORKS
from vitjax.weights.spt_lsa_names import CAIT


@checks(lambda config: config.get("backbone") == "cait")
def check_small_cait(config, arrays):
    model = release(
        NETWORKS["cait"],
        config,
        depth=config["depth"],
        class_depth=config["cls_depth"],
        num_heads=config["heads"],
        head_dim=config["dim_head"],
        mlp_dim=config["mlp_dim"],
    )
    compare_release(model, arrays, CAIT)
