"""The same import, encoding and indexes on many processes or machines: Ray carries the work, the table stays one."""
