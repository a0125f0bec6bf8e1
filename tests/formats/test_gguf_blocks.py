import pytest
import torch

from qsweep.formats.gguf.blocks import find_blocks, find_scales, gather


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def found_again(source, stored):
    turned, blocks = find_blocks(source, stored)
    back = gather(source.shape, blocks, stored.__getitem__, turned=turned)
    assert torch.equal(back, source)
    return blocks


def test_a_latent_projection_split_into_turned_keys_and_values():
    heads, key, value, rank = 4, 32, 24, 16
    source = numbers(heads * (key + value), rank)
    k, v = source.view(heads, key + value, rank).split([key, value], dim=1)
    stored = {"k_b": k.transpose(1, 2).contiguous(), "v_b": v.contiguous()}
    blocks = found_again(source, stored)
    assert [(b.tensor, b.turned, b.count, b.length) for b in blocks] == [
        ("k_b", True, heads, key),
        ("v_b", False, heads, value),
    ]


def test_query_key_and_value_of_grouped_heads():
    groups, per_group, size, width = 2, 4, 8, 64
    source = numbers(groups * (per_group + 2) * size, width)
    view = source.view(groups, per_group + 2, size, width)
    parts = (view[:, :-2], view[:, [-2]], view[:, [-1]])
    stored = torch.cat([part.reshape(-1, width) for part in parts])
    assert len(found_again(source, {"qkv": stored})) == 3
    # The same when each has a tensor of its own.
    own = {name: part.reshape(-1, width) for name, part in zip("qkv", parts, strict=True)}
    found_again(source, own)


@pytest.mark.parametrize("turned", [False, True])
def test_fused_experts_are_split(turned):
    source = numbers(3, 16, 24) if turned else numbers(3, 24, 16)
    plain = source.transpose(1, 2) if turned else source
    stored = {"gate": plain[:, :12].contiguous(), "up": plain[:, 12:].contiguous()}
    assert len(found_again(source, stored)) == 2


def test_interleaved_experts_are_split():
    source = numbers(3, 24, 16)
    stored = {"gate": source[:, ::2].contiguous(), "up": source[:, 1::2].contiguous()}
    found_again(source, stored)


def test_columns_in_another_order():
    source = numbers(20, 24)
    stored = source.view(20, 2, 3, 4).transpose(1, 2).reshape(20, 24)
    found_again(source, {"out": stored})


def test_parts_of_a_concatenation_and_a_padded_vocabulary():
    first, second = numbers(8, 16), numbers(4, 16, seed=1)
    whole = {"w": torch.cat([first, second])}
    found_again(first, whole)
    found_again(second, whole)
    found_again(first, {"w": torch.cat([first, torch.zeros(3, 16)])})


def test_convolutions_and_vectors_of_another_shape():
    source = numbers(12, 1, 4)
    found_again(source, {"conv": source.squeeze(1)})
    found_again(numbers(12), {"norm": numbers(12).view(3, 4)})


def test_equal_rows_do_not_break_a_run():
    source = torch.zeros(40, 8)
    source[::3] = numbers(14, 8)
    assert len(found_again(source, {"w": torch.cat([torch.zeros(2, 8), source])})) == 1


def test_rows_that_are_elsewhere_are_not_found():
    assert find_blocks(numbers(8, 16), {"w": numbers(8, 16, seed=1)}) is None
    assert find_blocks(numbers(8, 16), {"w": numbers(8, 16) * 1.5}) is None
    assert find_blocks(numbers(8, 16), {"w": numbers(8, 16)[:7]}) is None
    assert find_blocks(numbers(8, 16), {}) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranges_of_rows_with_a_factor_each(dtype):
    source = numbers(24, 32).to(torch.bfloat16)
    factors = torch.cat(
        [torch.full((10,), 0.7 * 1.2), torch.full((6,), 1.0), torch.full((8,), 3.0)]
    )
    stored = (source.float() * factors[:, None]).to(dtype)
    blocks = find_scales(source, stored, "in_proj")
    assert [b.length for b in blocks] == [10, 6, 8]
    assert [b.scale for b in blocks] == pytest.approx([0.84, 1.0, 3.0], rel=1e-3)
    back = gather(source.shape, blocks, lambda _: stored.float())
    assert torch.allclose(back, source.float(), rtol=2**-7 if dtype == torch.bfloat16 else 1e-6)


def test_another_matrix_is_no_multiple():
    assert find_scales(numbers(8, 16), numbers(8, 16, seed=1), "w") == ()
    assert find_scales(numbers(8, 16), numbers(8, 16) + 0.01, "w") == ()
