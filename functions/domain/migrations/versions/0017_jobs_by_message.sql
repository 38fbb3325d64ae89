-- While the table is empty the planner takes every index that begins with the tenant for a look-up by tenant and job, and
-- keeps that plan: each look-up then reads all jobs of the tenant. So the route comes first here.
DROP INDEX delivery_jobs_by_message;
CREATE INDEX delivery_jobs_by_message
    ON delivery_jobs (route_id, split_part(job_id, '-', 2), left(split_part(job_id, '-', 3), 16));
