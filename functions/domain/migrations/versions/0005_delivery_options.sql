-- What a route says of its delivery, in place of its type's manifest.

ALTER TABLE message_routes
    -- a CEL expression: jobs of one key are delivered one after the other; NULL for no order
    ADD COLUMN order_by text,
    -- retry delays, time limit, transformation: functions.domain.delivery_options
    ADD COLUMN delivery_options jsonb NOT NULL DEFAULT '{}';
