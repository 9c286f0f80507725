from .config import MeshConfig as MeshConfig
from .mesh import (
    make_mesh as make_mesh,
    use_mesh as use_mesh,
)
from .sharding import (
    RULES as RULES,
    constrain as constrain,
    place_batch as place_batch,
)
