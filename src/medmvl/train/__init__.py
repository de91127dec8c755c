"""Floor 5: from a recipe to a bundle; imports nothing by itself."""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """Importing anything from this room puts the room in the place of the function `medmvl.train`: so it acts as it."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from medmvl.train.run import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _Room
