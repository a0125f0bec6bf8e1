"""GGUF files as other makers write them: rewritten by the official package's writer."""

from gguf import GGMLQuantizationType, GGUFWriter

from qsweep.formats.gguf.reader import read_gguf


def rewrite(source, target, *, tensors=None, metadata=None, alignment=None, parts=0, order=None):
    """Write the file ``source`` again to ``target``, as another maker would have; its parts, if any.

    ``tensors`` changes or adds by name: None leaves out, a string names a tensor to copy, an array
    is stored as it is. ``metadata`` does the same to metadata. ``order`` sorts names; ``parts``
    splits after so many tensors each.
    """
    file = read_gguf(source)
    writer = GGUFWriter(target, file.architecture, split_max_tensors=parts)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in {**file.metadata, **(metadata or {})}.items():
        if key not in ("general.architecture", "general.alignment") and value is not None:
            _add(writer, key, value)
    changed = {**dict.fromkeys(file.tensors, ""), **(tensors or {})}
    for name in sorted(changed, key=order) if order else changed:
        what = changed[name]
        if what is None:
            continue
        if isinstance(what, str):
            info = file.tensors[what or name]
            shape = (*info.shape[:-1], info.type.bytes_of(info.shape[-1]))
            raw = file.bytes_of(info.name).numpy().reshape(shape)
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType(info.type.number))
        elif isinstance(what, tuple):
            writer.add_tensor(name, what[0], raw_dtype=GGMLQuantizationType(what[1].number))
        else:
            writer.add_tensor(name, what)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif value:
        writer.add_array(key, value)
