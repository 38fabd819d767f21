"""The names of all shipped configs, as they are given to `looplm train`."""

from looplm.config.load import configs_in, shipped_configs

FILES = sorted(shipped_configs().glob("*.py"))
NAMES = [f"{path.stem}:{name}" if name else path.stem for path in FILES for name in configs_in(path)]
