"""Package metadata. Tool settings stand in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vitjax/__init__.py").read_text())[1]

# Lower bounds are the versions the suite is run with; upper bounds stand where a minor release may break.
CORE = [
    "absl-py>=2.3",
    "array_record>=0.8.3",
    "chex>=0.1.92",
    "clu>=0.0.12",
    "etils[epath]>=1.12",
    "flax>=0.12.8,<0.13",
    "fsspec>=2025.3",
    "grain>=0.2.18",
    "importlib_resources>=6.5",  # needed by tensorflow-datasets' builders, which do not declare it
    "jax>=0.10.2,<0.13",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "ml_dtypes>=0.5",
    "numpy>=2",
    "opencv-python-headless>=4.11",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pyarrow>=19",
    "rich>=13.7",
    "scipy>=1.15",
    "simplejpeg>=1.9",
    "submitit>=1.5",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10,<4.10",
]
TEST = [
    "pillow>=11",
    "portpicker>=1.6",
    "pyright[nodejs]>=1.1.414",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.17,<0.18",
    "sacrebleu>=2.6",
    "sacremoses>=0.2",
    "safetensors>=0.6",  # the peer that our reader and writer are held against
    "scikit-learn>=1.6",
    "sentencepiece>=0.2.1",
    "tensorboard>=2.19",
]

setuptools.setup(
    name="vitjax",
    version=VERSION,
    description="Exact, resumable Vision Transformer experiments in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The vitjax authors",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["vitjax", "vitjax.*"]),
    package_data={"vitjax": ["data/*.npz", "analysis/*.html", "analysis/*.csv", "sweep/*.html"]},
    install_requires=CORE,
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "test": TEST,
        "docs": ["furo>=2025.12", "myst-nb>=1.4", "sphinx>=9"],
        "translate": ["sacrebleu>=2.6", "sacremoses>=0.2", "sentencepiece>=0.2.1"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
