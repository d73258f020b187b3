"The one thing pip reads. Everything it says comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
extras = {"dev": cfg["dev_requirements"].split(), "loops": cfg["loop_requirements"].split(), "peers": cfg["peer_requirements"].split()}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], license="Apache-2.0", url=cfg["git_url"], keywords=cfg["keywords"].split(),
    packages=find_packages(include=["kullback", "kullback.*"]), python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(), extras_require=extras, zip_safe=False,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["kullback=kullback._modidx:d"]},
)
