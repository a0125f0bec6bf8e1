"""From records to what people read: rows, tables, pages, checks, a winner."""
