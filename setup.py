"Package metadata, read from settings.ini: the one place that names version and requirements."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license=cfg["license"].upper(),
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    # assets are files of ccd, named here and not in MANIFEST.in: setuptools takes a folder of the manifest for a package and warns
    packages=find_packages(include=["ccd", "ccd.*"]), package_data={"ccd": ["assets/*"]},
    package_dir={"": "."},  # an editable install is then one plain path, and no import hook with a warning of its own
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in ("heif", "notebooks", "dev")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": [f"ccd={cfg['lib_path']}._modidx:d"]},
)
