"""The kernels in Triton's language: attention over tiles of keys with an online softmax (FlashAttention-2, Dao 2023).

`attend` is the general one. `attend_few` is for few queries over many keys (decoding): the keys are split over
programs, and `merge_splits` joins their parts. `mark_tiles` finds the tiles of a mask that `attend` can skip, or
take without looking at the mask.

Common arguments: ``scale_log2`` is scale · log2(e), positive; query ``i`` may attend to key ``j`` where
``j <= i + diagonal`` and the mask allows it (``diagonal`` is k_len - q_len for bottom-right causal attention, k_len
for none). Strides are in elements and the last dimension is contiguous. A row of strides is (batch, head, row).
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Where the running maximum starts: finite, so that rows that may attend nothing need no special case."""
NO_TILE = tl.constexpr(1 << 30)
MARKS_PER_LOAD = tl.constexpr(128)
MAX_SPLITS = tl.constexpr(32)
SIZES = (
    "heads", "group", "q_len", "k_len", "diagonal", "mask_b", "mask_h", "mask_r", "mask_heads", "marks_b", "marks_h",
    "splits", "tiles_per_split", "part_rows",
)  # fmt: skip
"""Arguments that change from call to call, for which no kernel of its own is compiled when run from torch."""


@triton.jit
def _load_rows(
    base, first, end, stride, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, CHECKED: tl.constexpr
) -> tl.tensor:
    """Rows ``first ...`` of a head: [block, head_dim]; checked: zeros from row ``end`` on."""
    rows = tl.arange(0, BLOCK)
    # Where the tile starts is counted in 64 bits, what lies within it in 32.
    tile = base + first.to(tl.int64) * stride + (rows[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :])
    if CHECKED:
        return tl.load(tile, mask=(rows < end - first)[:, None], other=0.0)
    return tl.load(tile)


@triton.jit
def _store_rows(base, first, end, stride, rows_data, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr) -> None:
    """The counterpart of `_load_rows`: rows from ``end`` on are left out."""
    rows = tl.arange(0, BLOCK)
    tile = base + first.to(tl.int64) * stride + (rows[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :])
    tl.store(tile, rows_data.to(base.dtype.element_ty), mask=(rows < end - first)[:, None])


@triton.jit
def _nothing_seen(BLOCK_Q: tl.constexpr, HEAD_DIM: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Sums, totals and maxima before the first tile."""
    sums = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    return sums, tl.zeros([BLOCK_Q], tl.float32), tl.full([BLOCK_Q], LOWEST, tl.float32)


@triton.jit
def _averages(sums, total) -> tl.tensor:
    """What the sums are of; zeros where nothing was allowed."""
    return sums / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _seen(row, k_len, diagonal) -> tl.tensor:
    """How many keys the query in place ``row`` may attend to, but for a mask."""
    return tl.maximum(tl.minimum(k_len, row + diagonal + 1), 0)


@triton.jit
def _allowed(
    base, mask_row, row, row_exists, first, k_len, diagonal, BLOCK_K: tl.constexpr, MASKED: tl.constexpr
) -> tl.tensor:
    """Which of the keys ``first ...`` each query may attend to: [block_q, block_k]."""
    column = tl.arange(0, BLOCK_K)
    allowed = column[None, :] < tl.minimum(row + (diagonal + 1), k_len)[:, None] - first
    if MASKED:
        there = row_exists[:, None] & (column < k_len - first)[None, :]
        allowed = allowed & (tl.load(base + first + (mask_row[:, None] + column[None, :]), mask=there, other=0) != 0)
    return allowed


@triton.jit
def _fold(
    sums, total, highest, query, key, value, mask, mask_row, row, row_exists,
    k_stride, v_stride, k_len, diagonal, scale_log2, begin, end, gap_begin, gap,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr, CHECKED: tl.constexpr, MASKED: tl.constexpr, STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take key tiles ``begin ... end - 1``, without the ``gap`` tiles from ``gap_begin`` on, into the running sums,
    totals and maxima of each row. ``STAGES`` is how many are in flight, None for the kernel's own number.
    """
    # Asking first keeps the wait for the loop's last product on one path: else all products would be waited for singly.
    if begin < end - gap:
        for step in tl.range(begin, end - gap, num_stages=STAGES):
            tile = step
            if CHECKED:
                tile = tl.where(step < gap_begin, step, step + gap)
            first = tile * BLOCK_K
            keys = _load_rows(key, first, k_len, k_stride, BLOCK_K, HEAD_DIM, CHECKED)
            if CHECKED:
                allowed = _allowed(mask, mask_row, row, row_exists, first, k_len, diagonal, BLOCK_K, MASKED)
                # What a product starts from takes the product's layout: so the mask is rearranged, not the products.
                products = tl.dot(query, tl.trans(keys), tl.where(allowed, 0.0, float("-inf")))
            else:
                products = tl.dot(query, tl.trans(keys))  # [block_q, block_k]
            raised = tl.maximum(highest, tl.max(products, 1) * scale_log2)
            weights = tl.math.exp2(products * scale_log2 - raised[:, None])
            shrink = tl.math.exp2(highest - raised)
            total = total * shrink + tl.sum(weights, 1)
            values = _load_rows(value, first, k_len, v_stride, BLOCK_K, HEAD_DIM, CHECKED)
            sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None])
            highest = raised
    return sums, total, highest


@triton.jit
def _marked_spans(marks, tiles) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """From a row of `mark_tiles`: the first tile and the end of what must be seen, and the full run within."""
    begin = NO_TILE
    end = 0
    full_begin = NO_TILE
    full_end = tiles
    for start in range(0, tiles, MARKS_PER_LOAD):
        tile = start + tl.arange(0, MARKS_PER_LOAD)
        mark = tl.load(marks + tile, mask=tile < tiles, other=0)
        begin = tl.minimum(begin, tl.min(tl.where(mark > 0, tile, NO_TILE), 0))
        end = tl.maximum(end, tl.max(tl.where(mark > 0, tile + 1, 0), 0))
        full_begin = tl.minimum(full_begin, tl.min(tl.where(mark == 2, tile, NO_TILE), 0))
        broken = (mark != 2) & (tile >= full_begin)
        full_end = tl.minimum(full_end, tl.min(tl.where(broken, tile, NO_TILE), 0))
    full_begin = tl.minimum(full_begin, end)
    full_end = tl.maximum(tl.minimum(full_end, end), full_begin)
    return tl.minimum(begin, end), full_begin, full_end, end


@triton.jit(do_not_specialize=SIZES)
def attend(
    query, key, value, out, mask, marks, scale_log2, heads, group, q_len, k_len, diagonal,
    q_b, q_h, q_r, k_b, k_h, k_r, v_b, v_h, v_r, o_b, o_h, o_r, mask_b, mask_h, mask_r, marks_b, marks_h,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr,
) -> None:  # fmt: skip
    """One program per block of queries of one head; grid: (query blocks · batch · heads,).

    Only tiles on the diagonal, at the end, or partly masked are checked element by element. They are few: their loads
    are not made ahead, which leaves the registers to the others.
    """
    blocks = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    block = blocks - 1 - program % blocks  # the longest rows of a causal head first
    batch = (program // blocks // heads).to(tl.int64)
    head = (program // blocks % heads).to(tl.int64)
    first = block * BLOCK_Q
    slot = tl.arange(0, BLOCK_Q)
    queries = _load_rows(query + batch * q_b + head * q_h, first, q_len, q_r, BLOCK_Q, HEAD_DIM, True)
    keys = key + batch * k_b + head // group * k_h
    values = value + batch * v_b + head // group * v_h
    sums, total, highest = _nothing_seen(BLOCK_Q, HEAD_DIM)
    if MASKED:
        mask += batch * mask_b + head * mask_h + first.to(tl.int64) * mask_r
        tiles = tl.cdiv(k_len, BLOCK_K)
        marks += batch * marks_b + head * marks_h + block * tiles
        begin, full_begin, full_end, end = _marked_spans(marks, tiles)
    else:
        begin, full_begin = 0, 0
        full_end = _seen(first, k_len, diagonal) // BLOCK_K
        end = tl.cdiv(_seen(tl.minimum(first + BLOCK_Q, q_len) - 1, k_len, diagonal), BLOCK_K)
    sums, total, highest = _fold(
        sums, total, highest, queries, keys, values, mask, slot * mask_r, first + slot, slot < q_len - first, k_r, v_r,
        k_len, diagonal, scale_log2, full_begin, full_end, full_begin, 0, HEAD_DIM, BLOCK_K, False, MASKED, None,
    )  # fmt: skip
    sums, total, highest = _fold(
        sums, total, highest, queries, keys, values, mask, slot * mask_r, first + slot, slot < q_len - first, k_r, v_r,
        k_len, diagonal, scale_log2, begin, end, full_begin, full_end - full_begin, HEAD_DIM, BLOCK_K, True, MASKED, 1,
    )  # fmt: skip
    _store_rows(out + batch * o_b + head * o_h, first, q_len, o_r, _averages(sums, total), BLOCK_Q, HEAD_DIM)


@triton.jit(do_not_specialize=SIZES)
def mark_tiles(
    mask, marks, q_len, k_len, diagonal, mask_b, mask_h, mask_r, mask_heads,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """Write 0 for a tile of the mask that allows nothing, 2 for one that allows everything, else 1.

    ``marks`` is int8 [mask batch, mask heads, query blocks, key tiles]; grid: (its size,).
    """
    blocks = tl.cdiv(q_len, BLOCK_Q)
    tiles = tl.cdiv(k_len, BLOCK_K)
    program = tl.program_id(0)
    tile = program % tiles
    block = program // tiles % blocks
    head = program // tiles // blocks % mask_heads
    batch = program // tiles // blocks // mask_heads
    rows = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    base = mask + batch.to(tl.int64) * mask_b + head.to(tl.int64) * mask_h
    pairs = base + rows.to(tl.int64)[:, None] * mask_r + columns[None, :]
    exists = (rows < q_len)[:, None] & (columns < k_len)[None, :]
    allowed = tl.load(pairs, mask=exists, other=0) != 0
    allowed = allowed & (columns[None, :] <= (rows + diagonal)[:, None])
    some = tl.max(allowed.to(tl.int32))
    every = tl.min((allowed | (rows >= q_len)[:, None]).to(tl.int32))
    tl.store(marks + program, (some + some * every).to(tl.int8))


@triton.jit(do_not_specialize=SIZES)
def attend_few(
    query, key, value, out, mask, parts, scale_log2, heads, group, q_len, k_len, diagonal,
    q_b, q_h, q_r, k_b, k_h, k_r, v_b, v_h, v_r, o_b, o_h, o_r, mask_b, mask_h, mask_r,
    splits, tiles_per_split, part_rows,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, MASKED: tl.constexpr,
) -> None:  # fmt: skip
    """One program per split of the keys of one key-value head, for all its queries: group · q_len <= BLOCK_Q.

    Grid: (splits · kv heads · batch,). One split writes the result; each of several writes a part for `merge_splits`.
    """
    program = tl.program_id(0)
    split = program % splits
    kv_head = (program // splits % (heads // group)).to(tl.int64)
    batch = (program // splits // (heads // group)).to(tl.int64)
    slot = tl.arange(0, BLOCK_Q)
    row_exists = slot < group * q_len
    row = slot % q_len
    head = kv_head * group + tl.minimum(slot // q_len, group - 1)
    q_row = query + batch * q_b + head * q_h + row * q_r
    queries = tl.load(q_row[:, None] + tl.arange(0, HEAD_DIM)[None, :], mask=row_exists[:, None], other=0.0)
    keys = key + batch * k_b + kv_head * k_h
    values = value + batch * v_b + kv_head * v_h

    begin = split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, tl.cdiv(_seen(q_len - 1, k_len, diagonal), BLOCK_K))
    full_end = begin
    sums, total, highest = _nothing_seen(BLOCK_Q, HEAD_DIM)
    if MASKED:
        mask += batch * mask_b
    else:
        full_end = tl.maximum(tl.minimum(_seen(0, k_len, diagonal) // BLOCK_K, end), begin)
        sums, total, highest = _fold(
            sums, total, highest, queries, keys, values, mask, row, row, row_exists, k_r, v_r,
            k_len, diagonal, scale_log2, begin, full_end, begin, 0, HEAD_DIM, BLOCK_K, False, False, None,
        )  # fmt: skip
    sums, total, highest = _fold(
        sums, total, highest, queries, keys, values, mask, head * mask_h + row * mask_r, row, row_exists, k_r, v_r,
        k_len, diagonal, scale_log2, full_end, end, full_end, 0, HEAD_DIM, BLOCK_K, True, MASKED, None,
    )  # fmt: skip
    out_row = out + batch * o_b + head * o_h + row * o_r
    part = ((batch * heads + head) * q_len + row) * splits + split
    _store_few(out_row, parts, part, row_exists, splits, part_rows, sums, total, highest, HEAD_DIM)


@triton.jit
def _store_few(out_row, parts, part, exists, splits, part_rows, sums, total, highest, HEAD_DIM: tl.constexpr) -> None:
    """The only split writes the result. Others write parts: the sums of all, then their totals, then their maxima."""
    column = tl.arange(0, HEAD_DIM)[None, :]
    if splits == 1:
        averages = _averages(sums, total).to(out_row.dtype.element_ty)
        tl.store(out_row[:, None] + column, averages, mask=exists[:, None])
    else:
        count = part_rows.to(tl.int64) * splits
        tl.store(parts + part[:, None] * HEAD_DIM + column, sums, mask=exists[:, None])
        tl.store(parts + count * HEAD_DIM + part, total, mask=exists)
        tl.store(parts + count * (HEAD_DIM + 1) + part, highest, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def merge_splits(parts, out, heads, q_len, o_b, o_h, o_r, splits, part_rows, HEAD_DIM: tl.constexpr) -> None:
    """Join what `attend_few` left of one query: ``parts`` is float32 sums [row, split, head_dim], totals, maxima.

    Grid: (batch · heads · q_len,), the rows of the parts.
    """
    program = tl.program_id(0)
    row = program % q_len
    head = program // q_len % heads
    batch = program // q_len // heads
    split = tl.arange(0, MAX_SPLITS)
    columns = tl.arange(0, HEAD_DIM)
    exists = split < splits
    part = program.to(tl.int64) * splits + split
    ends = parts + part_rows.to(tl.int64) * splits * HEAD_DIM + part
    total = tl.load(ends, mask=exists, other=0.0)
    highest = tl.load(ends + part_rows.to(tl.int64) * splits, mask=exists, other=LOWEST)
    sums = tl.load(parts + part[:, None] * HEAD_DIM + columns[None, :], mask=exists[:, None], other=0.0)
    weight = tl.math.exp2(highest - tl.max(highest, 0))
    whole = tl.sum(total * weight, 0)
    merged = tl.sum(sums * weight[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
    start = out + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + row * o_r
    tl.store(start + columns, merged.to(out.dtype.element_ty))
