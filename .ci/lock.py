"""Resolve settings.ini's requirements (with the extras `dev` and `loops`) into requirements.lock: versions only, no index addresses.

Pins that still fit are kept; UPGRADE=1 looks for newer ones.
"""
import os
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=["="])
ini.read(root / "settings.ini", encoding="utf-8")
wanted = " ".join(ini["DEFAULT"][f"{part}requirements"] for part in ("", "dev_", "loop_")).split()
pip = [sys.executable, "-m", "pip", "config", "get"]


def setting(name):
    "What pip is configured with, so that uv looks in the same places."
    return subprocess.run([*pip, name], capture_output=True, text=True).stdout.strip()


env = dict(os.environ, UV_INDEX_STRATEGY="unsafe-best-match", UV_EXTRA_INDEX_URL=setting("global.extra-index-url"),
           UV_FIND_LINKS=setting("global.find-links"))
with tempfile.TemporaryDirectory() as tmp:
    source = Path(tmp) / "requirements.in"
    source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--no-annotate", "--no-header", "--python-version", "3.11",
               str(source), "-o", str(root / "requirements.lock")]
    if os.environ.get("UPGRADE") == "1": command.append("--upgrade")
    subprocess.run(command, check=True, env=env)
lock = (root / "requirements.lock").read_text(encoding="utf-8")
if "://" in lock: raise SystemExit("requirements.lock holds an address; nobody else could use it")
