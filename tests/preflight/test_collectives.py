"""What a program is said to send, against what its collectives are known to."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax.preflight import collectives

N = 8


def sent(function, *, specs):
    """Bytes that each of N devices sends in `function` of float32 [64, 16], split as `specs`."""
    mesh = jax.make_mesh((N,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)
    )
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32)
    return collectives.sent(mapped.lower(x).compile().as_text())


def test_a_ring_sends_what_each_kind_is_known_to():
    whole = 64 * 16 * 4  # bytes
    gathered = sent(functools.partial(jax.lax.all_gather, axis_name='x'), specs=(P('x'), P('x')))
    assert gathered == {'all-gather': whole * (N - 1) // N}
    reduced = sent(functools.partial(jax.lax.psum, axis_name='x'), specs=(P('x'), P()))
    assert reduced == {'all-reduce': 2 * (whole // N) * (N - 1) // N}
    shift = functools.partial(
        jax.lax.ppermute, axis_name='x', perm=[(i, (i + 1) % N) for i in range(N)]
    )
    assert sent(shift, specs=(P('x'), P('x'))) == {'collective-permute': whole // N}
    assert sent(lambda x: 2 * x, specs=(P('x'), P('x'))) == {}


def test_a_loop_sends_as_often_as_it_runs():
    def summed(x):
        def body(carry, _):
            return jax.lax.pmean(carry, 'x') * 0.5 + x, None

        return jax.lax.scan(body, x, length=5)[0]

    once = 2 * (64 * 16 * 4 // N) * (N - 1) // N
    assert sent(summed, specs=(P('x'), P('x'))) == {'all-reduce': 5 * once}


# Forms that the compilers for TPU and GPU write, by hand.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%a, %b)
}}

%all-reduce-scatter.5 (x: bf16[4,8]) -> bf16[1,8] {{
  %whole = bf16[4,8]{{1,0}} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %part = bf16[1,8]{{1,0}} dynamic-slice(%whole), dynamic_slice_sizes={{1,8}}
}}

%async_computation (x: bf16[1,8]) -> bf16[4,8] {{
  ROOT %gathered = bf16[4,8]{{1,0}} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={{0}}
}}

%condition (state: (s32[], bf16[4,8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(3)
  %counter = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%counter, %limit), direction=LT
}}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {{
  {line}
}}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {{
  %loop = (s32[], bf16[4,8]) while(%init), condition=%condition, body=%body
}}
"""


def test_loops_that_the_tpu_compiler_has_unrolled():
    text = PROGRAM.replace('{{', '{').replace('}}', '}').replace('s32[]', 'u32[]')
    text = text.replace('constant(3)', 'constant(8)')
    line = '%a = bf16[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8]'
    assert collectives.sent(text.replace('{line}', line)) == {'all-gather': 8 * 48}
    line += """
  %two = u32[]{:T(128)} constant(2)
  %old = u32[]{:T(128)} get-tuple-element(%state), index=0
  %next = u32[]{:T(128)} add(%old, %two)
  ROOT %result = (u32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%next, %a)"""
    assert collectives.sent(text.replace('{line}', line)) == {'all-gather': 4 * 48}


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        (  # groups listed: 2 chips; 64 bytes, twice a half, three times
            '%a = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1, '
            'replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add',
            {'all-reduce': 3 * 64},
        ),
        (  # groups as an iota: 4 chips
            '%a = bf16[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8]',
            {'all-gather': 3 * 48},
        ),
        (  # groups by axes of a mesh: 2 x 2 chips
            "%a = bf16[4,8]{1,0} all-gather(%x), replica_groups=mesh['a'=2,'b'=2,'c'=2], "
            "device_ids=([2,4]T(1,0)) {'a','c'}, dimensions={1}",
            {'all-gather': 3 * 48},
        ),
        (  # nothing said: all chips
            '%a = bf16[4,8]{1,0} reduce-scatter(%x), channel_id=1, dimensions={0}',
            {'reduce-scatter': 3 * 7 * 64},
        ),
        (  # a start holds its operand and its result
            '%a = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%x), channel_id=1, '
            'replica_groups=[2,4]<=[8]',
            {'all-gather': 3 * 48},
        ),
        (
            '%a = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x), '
            'channel_id=1, source_target_pairs={{0,1},{1,0}}',
            {'collective-permute': 3 * 64},
        ),
        (  # a start holds its operands and its results, with what compilers for TPUs say of layouts
            '%a = ((bf16[4,8]{1,0:T(8,128)(2,1)}), bf16[4,8]{1,0:T(8,128)(2,1)}) '
            'all-reduce-start(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add',
            {'all-reduce': 3 * 64},
        ),
        (  # a start of older compilers holds its results alone
            '%a = (bf16[4,8]{1,0}, f32[2]{0}) all-reduce-start(%x, %y), channel_id=1, '
            'replica_groups=[4,2]<=[8], to_apply=%add',
            {'all-reduce': 3 * 72},
        ),
        (
            '%a = ((bf16[4,8]{1,0}, f32[8]{0}), (bf16[1,8]{1,0}, f32[2]{0}), u32[]) '
            'reduce-scatter-start(%x, %y), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add',
            {'reduce-scatter': 3 * (48 + 24)},
        ),
        (
            '%a = ((bf16[4,8]{1,0}), bf16[4,8]{1,0}) all-to-all-start(%x), channel_id=1, '
            'replica_groups=[2,4]<=[8]',
            {'all-to-all': 3 * 48},
        ),
        (  # groups by parts of an axis: 4 chips of 8, then 2
            "%a = bf16[4,8]{1,0} all-gather(%x), replica_groups=mesh['x'=8] {'x':(2)4}\n"
            "  %b = bf16[4,8]{1,0} all-to-all(%x), replica_groups=mesh['x'=8] {'x':(1)2}",
            {'all-gather': 3 * 48, 'all-to-all': 3 * 32},
        ),
        (  # steps of one
            '%a = bf16[4,8]{1,0} all-to-all(%x), channel_id=9, replica_groups=[2,4]<=[8], '
            'frontend_attributes={chain_id="2"}\n'
            '  %b = bf16[4,8]{1,0} all-to-all(%x), channel_id=9, replica_groups=[2,4]<=[8], '
            'frontend_attributes={chain_id="2"}',
            {'all-to-all': 3 * 48},
        ),
        (  # two of one channel
            '%a = bf16[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8]\n'
            '  %b = bf16[2,8]{1,0} all-gather(%y), channel_id=1, replica_groups=[2,4]<=[8]\n'
            '  %c = bf16[2]{0} all-reduce(%z), channel_id=1, replica_groups=[4,2]<=[8]',
            {'all-gather': 3 * (48 + 24), 'all-reduce': 3 * 4},
        ),
        (  # chips keep their part of a sum
            '%a = bf16[1,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.5',
            {'reduce-scatter': 3 * 56},
        ),
        (  # what ends has been counted
            '%a = ((bf16[1,8]), bf16[4,8]{1,0}, s32[]) async-start(%x), calls=%async_computation\n'
            '  %b = bf16[4,8]{1,0} async-done(%a), calls=%async_computation',
            {'all-gather': 3 * 48},
        ),
        ('%a = (bf16[4,8]{1,0}, f32[2]{0}) all-reduce(%x, %y), channel_id=1', {'all-reduce': 378}),
        (  # to a host of TPUs, for other slices; and from it
            '%a = (f32[9,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=5, '
            'is_host_transfer=true, frontend_attributes={'
            '_xla_host_transfer_handler_name="xla_megascale_runtime"}\n'
            '  %b = (f32[9,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=4, '
            'is_host_transfer=true, frontend_attributes={'
            '_xla_host_transfer_handler_name="xla_megascale_runtime"}\n'
            '  %c = token[] send-done(%a), channel_id=5, is_host_transfer=true, '
            'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}',
            {'between slices': 3 * 9 * 8 * 128 * 4},
        ),
    ],
)
def test_forms_of_other_compilers(line, expected):
    text = PROGRAM.replace('{{', '{').replace('}}', '}').replace('{line}', line)
    assert collectives.sent(text) == expected
