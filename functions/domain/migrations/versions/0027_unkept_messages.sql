-- Where refused messages that were counted and not kept are in their streams, for as long as they may be delivered again.
-- A row is a run of messages without a gap, all refused by one transaction.
CREATE TABLE quarantine_unkept (
    stream text NOT NULL,
    sequences int8range NOT NULL,
    -- a stream that was made anew has the sequences again, at other times
    first_stored_at timestamptz NOT NULL,
    last_stored_at timestamptz NOT NULL,
    counted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX quarantine_unkept_sequences ON quarantine_unkept USING gist (sequences);
CREATE INDEX quarantine_unkept_age ON quarantine_unkept (counted_at);
