from .config import (
    HostsConfig as HostsConfig,
    MeshConfig as MeshConfig,
)
from .hosts import (
    is_main as is_main,
    on_host as on_host,
)
from .mesh import (
    make_mesh as make_mesh,
    use_mesh as use_mesh,
)
from .programs import (
    init_state as init_state,
    jit_update as jit_update,
    update_program as update_program,
)
from .sharding import (
    RULES as RULES,
    check_divides as check_divides,
    constrain as constrain,
    current_mesh as current_mesh,
    num_batch_parts as num_batch_parts,
    place_batch as place_batch,
    place_params as place_params,
)
from .work import (
    add_flops as add_flops,
    counted as counted,
    counting as counting,
    is_counting as is_counting,
)
